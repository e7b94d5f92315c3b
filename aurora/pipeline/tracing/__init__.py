"""`aurora check --trace`: every stage run again, in a folder that holds what it declares and nothing else.

What a stage reads beyond its `deps` and `params` is then not there, whatever library opens it. An audit hook in each
Python process names such a file, where it only looks for it too, and every connection; what a stage leaves beyond its
`outs` is found behind it. Its outputs become the inputs of the stages that follow, and are held against dvc.lock.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING

from aurora.core.declared import DVC_YAML
from aurora.core.errors import DataError
from aurora.pipeline.reasons import in_order, overlap

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

HOOK = Path(__file__).parent / "hook"
# Left beside the outputs: what an unfinished run goes on from, keyed by all that it depends on, and curves to look at.
SCRATCH = (".aurora", "dvclive")
MAY_CONNECT = ("fetch", "fetch_hub")
LAST_LINES = 5


@dataclass(frozen=True, slots=True)
class Traced:
    """What came of a traced run."""

    stages: int
    outputs: int  # held against dvc.lock
    stale: tuple[str, ...]  # stages that dvc.lock is not of, so that their outputs may differ
    faults: tuple[str, ...]


def trace(repo: "Repo") -> Traced:
    """Runs all stages, each in its own folder under the system's folder for temporary files.

    Says the progress on stderr. Raises DataError where a stage fails, with the end of what it printed.
    """
    root = Path(repo.root_dir)
    stages = in_order(repo, ())
    stale = _stale(repo)
    faults: list[str] = []
    outputs = 0
    with TemporaryDirectory(prefix="aurora-trace-") as folder:
        pool = Path(folder).resolve() / "outputs"
        for number, stage in enumerate(stages, 1):
            start = monotonic()
            place = Path(folder).resolve() / "stage"
            place.mkdir()
            _furnish(stage, place, root, pool)
            log = place.with_name("trace.jsonl")
            log.write_bytes(b"")
            _run(stage, place, root, log)
            faults += _undeclared(stage, place, root, log)
            faults += _collect(stage, place, pool)
            shutil.rmtree(place)
            if stage not in stale:
                outputs += len(stage.outs)
                faults += _differing(stage, pool)
            print(
                f"trace {number}/{len(stages)}: {stage.addressing}, {monotonic() - start:.0f} s",
                file=sys.stderr,
            )
    names = tuple(sorted(stage.addressing for stage in stale))
    return Traced(len(stages), outputs, names, tuple(dict.fromkeys(faults)))


def _stale(repo: "Repo") -> set["PipelineStage"]:
    """Stages that changed since dvc.lock in what git tracks, and those behind them."""
    import networkx

    made = [out.fs_path for stage in repo.index.stages for out in stage.outs]
    first = set()
    for stage in repo.index.stages:
        own = [
            dep
            for dep in stage.deps
            if dep in stage.params or not any(overlap(dep.fs_path, out) for out in made)
        ]
        if not stage.outs[0].hash_info or stage.changed_stage() or any(dep.status() for dep in own):
            first.add(stage)
    return first.union(*(networkx.ancestors(repo.index.graph, stage) for stage in first))


def _furnish(stage: "PipelineStage", place: Path, root: Path, pool: Path) -> None:
    from ruamel.yaml import YAML

    shutil.copyfile(
        root / DVC_YAML, place / DVC_YAML
    )  # says what the stage declares, and is watched by DVC itself
    for dep in stage.deps:
        if dep in stage.params:
            content: dict = {}
            for key, value in dep.read_params().items():
                *parents, last = key.split(".")
                inner = content
                for name in parents:
                    inner = inner.setdefault(name, {})
                inner[last] = value
            with (place / dep.def_path).open("w", encoding="utf-8") as file:
                YAML().dump(content, file)
            continue
        if (pool / dep.def_path).exists():
            _place(pool / dep.def_path, place / dep.def_path, _link)
        elif (root / dep.def_path).exists():
            # A copy, so that no stage can write into what git tracks.
            _place(root / dep.def_path, place / dep.def_path, shutil.copyfile)
        else:
            raise DataError(
                f"{DVC_YAML}: {stage.addressing}: {dep.def_path} is missing; restore it or take it out"
            )


def _place(source: Path, target: Path, copy: Callable[[str, str], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored, copy_function=copy, dirs_exist_ok=True)
    else:
        copy(str(source), str(target))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _run(stage: "PipelineStage", place: Path, root: Path, log: Path) -> None:
    path = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DVC_STAGE": stage.addressing,
        "AURORA_TRACE": str(log),
        "AURORA_TRACE_BELOW": os.pathsep.join([str(place) + os.sep, str(root) + os.sep]),
    }
    done = subprocess.run(
        stage.cmd,
        shell=True,  # as DVC runs it
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = " / ".join(done.stdout.strip().splitlines()[-LAST_LINES:])
        looked = "; ".join(_undeclared(stage, place, root, log))
        raise DataError(
            f"{stage.addressing} fails where it has only what dvc.yaml declares: {said or 'it says nothing'}"
            + (f" ({looked})" if looked else "")
        )


def _undeclared(stage: "PipelineStage", place: Path, root: Path, log: Path) -> Iterator[str]:
    outs = {out.def_path for out in stage.outs}
    libraries = tuple({Path(sys.prefix).resolve(), Path(sys.prefix)})
    for line in log.read_text(encoding="utf-8").splitlines():
        kind, what = json.loads(line)
        if kind == "connect":
            if stage.name.partition("@")[0] not in MAY_CONNECT and not _is_here(what):
                yield f"{stage.addressing} connects to {what}; only {' and '.join(MAY_CONNECT)} may"
            continue
        path = Path(what)
        if place in path.parents:
            name = path.relative_to(place)
        elif root in path.parents and not any(folder in path.parents for folder in libraries):
            name = path.relative_to(root)
        else:
            continue
        if not _allowed(stage, name, outs) and (root / name).is_file():
            yield f"{stage.addressing} opens {name}, which dvc.yaml does not declare; add it to deps"


def _allowed(stage: "PipelineStage", name: Path, more: Set[str] = frozenset()) -> bool:
    """Whether a stage may have to do with a file: its map, a dependency, one of `more`, or what lies in one, or scratch."""
    declared = {str(DVC_YAML), *more, *(dep.def_path for dep in stage.deps)}
    return name.parts[0] in SCRATCH or not declared.isdisjoint({str(name), *map(str, name.parents)})


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _collect(stage: "PipelineStage", place: Path, pool: Path) -> Iterator[str]:
    """Moves the outputs to `pool`; yields what is missing, and what was left beside them."""
    for out in stage.outs:
        made, target = place / out.def_path, pool / out.def_path
        if not made.exists():
            yield f"{stage.addressing} does not write {out.def_path}, which dvc.yaml lists in outs"
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place)
        if path.is_file() and not _allowed(stage, name):
            yield f"{stage.addressing} writes {name}, which dvc.yaml does not list in outs"


def _differing(stage: "PipelineStage", pool: Path) -> Iterator[str]:
    """A line for each output whose bytes are not those of dvc.lock."""
    from dvc_data.hashfile.build import build

    for out in stage.outs:
        path = pool / out.def_path
        if path.exists():
            _, _, found = build(out.cache, str(path), out.fs, out.hash_name, dry_run=True)
            if found.hash_info != out.hash_info:
                yield f"{stage.addressing}: {out.def_path} has other bytes than in dvc.lock"
