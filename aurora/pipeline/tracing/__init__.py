"""`aurora check --trace`: stages run again, in a sandbox that holds what they declare and nothing else.

What a stage reads beyond its `deps` and `params` is then not there, whatever opens it (sandbox.py): no other file, no
variable of the caller's environment, no network, nobody's home folder; host name, user and number of processors are
others. An audit hook in each Python process names a file that a stage only looks for, and every connection; what it leaves
beyond its `outs` is found behind it. Its outputs become the inputs of the stages that follow, and are held against
dvc.lock: what slipped in when that was written shows there.
"""

import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING

from aurora.core.declared import DVC_YAML
from aurora.core.errors import DataError
from aurora.pipeline.integrity import recorded_files
from aurora.pipeline.reasons import in_order, named, overlap
from aurora.pipeline.tracing import sandbox

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

HOOK = Path(__file__).parent / "hook"
# Left beside the outputs: what an unfinished run goes on from, keyed by all that it depends on, and curves to look at.
SCRATCH = (".aurora", "dvclive")
MAY_CONNECT = ("fetch_download", "fetch_hub")
LAST_LINES = 5
COPIED = 2**28  # bytes of an input up to which it is copied
# The system, which is taken as it is, as a version of it is not an input that DVC could watch.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM += tuple(
    f"/etc/{name}"
    for name in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl", "pki", "ca-certificates")
)
SYSTEM += ("/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/mime.types", "/nix/store")
KEPT = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")  # the machine's, not the user's
FOR_FETCH = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
FOR_FETCH += tuple(f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "NO", "ALL"))
FOR_FETCH += tuple(f"{kind}_proxy" for kind in ("http", "https", "no", "all"))


@dataclass(frozen=True, slots=True)
class Traced:
    """What came of a traced run."""

    stages: int
    outputs: int  # held against dvc.lock
    stale: tuple[str, ...]  # stages that dvc.lock is not of, so that their outputs may differ
    faults: tuple[str, ...]
    kind: str  # of the sandbox


def trace(repo: "Repo", names: Sequence[str] = (), kind: str | None = None) -> Traced:
    """Runs these stages, or all, each in its own folder under the system's folder for temporary files.

    What a stage reads of one that is not named comes from DVC's cache, by dvc.lock. `kind` is the sandbox's, the strongest
    that the kernel offers if none is given. Says the progress on stderr. Raises DataError where a stage fails, with the end
    of what it printed, for an unknown name, and for an input that the cache lacks.
    """
    root = Path(repo.root_dir)
    kind = kind or sandbox.offered()
    wanted = named(repo, names)
    stages = [stage for stage in in_order(repo, names) if stage in wanted]
    recorded = {} if len(stages) == len(repo.index.stages) else recorded_files(repo)
    stale = _stale(repo)
    faults: list[str] = []
    outputs = 0
    with TemporaryDirectory(prefix="aurora-trace-") as folder:
        pool = Path(folder).resolve() / "outputs"
        for number, stage in enumerate(stages, 1):
            start = monotonic()
            place = Path(folder).resolve() / "stage"
            place.mkdir()
            _furnish(stage, place, root, pool, recorded, _link if kind == sandbox.NAMESPACES else _copy)
            log = place.with_name("trace.jsonl")
            log.write_bytes(b"")
            _run(stage, place, root, log, kind)
            faults += _undeclared(stage, place, root, log)
            faults += _collect(stage, place, pool)
            shutil.rmtree(place)
            if stage not in stale:
                outputs += len(stage.outs)
                faults += _differing(stage, pool)
            print(f"trace {number}/{len(stages)}: {stage.addressing}, {monotonic() - start:.0f} s", file=sys.stderr)
    older = tuple(stage.addressing for stage in stages if stage in stale)
    return Traced(len(stages), outputs, older, tuple(dict.fromkeys(faults)), kind)


def _stale(repo: "Repo") -> set["PipelineStage"]:
    """Stages that changed since dvc.lock in what git tracks, and those behind them."""
    import networkx

    made = [out.fs_path for stage in repo.index.stages for out in stage.outs]
    first = set()
    for stage in repo.index.stages:
        own = [dep for dep in stage.deps if dep in stage.params or not any(overlap(dep.fs_path, out) for out in made)]
        if not stage.outs[0].hash_info or stage.changed_stage() or any(dep.status() for dep in own):
            first.add(stage)
    return first.union(*(networkx.ancestors(repo.index.graph, stage) for stage in first))


def _furnish(
    stage: "PipelineStage",
    place: Path,
    root: Path,
    pool: Path,
    recorded: Mapping[str, tuple[str, str]],
    link: Callable[[str, str], object],  # safe where the stage cannot write into what it links to
) -> None:
    from ruamel.yaml import YAML

    shutil.copyfile(root / DVC_YAML, place / DVC_YAML)  # says what the stage declares, and is watched by DVC itself
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
        cached = {path: found for path, found in recorded.items() if overlap(path, dep.def_path)}
        if (pool / dep.def_path).exists():
            _place(pool / dep.def_path, place / dep.def_path, link)
        for path, (object_, maker) in cached.items():
            if not (place / path).exists() and (path == dep.def_path or path.startswith(f"{dep.def_path}/")):
                if not Path(object_).is_file():
                    raise DataError(f"{stage.addressing}: its input {path} is not in DVC's cache; dvc pull {maker}")
                _place(Path(object_), place / path, link)
        if (place / dep.def_path).exists():
            continue
        if (root / dep.def_path).exists():
            # A copy, so that no stage can write into what git tracks.
            _place(root / dep.def_path, place / dep.def_path, _copy)
        else:
            raise DataError(f"{DVC_YAML}: {stage.addressing}: {dep.def_path} is missing; restore it or take it out")


def _place(source: Path, target: Path, copy: Callable[[str, str], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored, copy_function=copy, dirs_exist_ok=True)
    else:
        copy(str(source), str(target))


def _copy(source: str, target: str) -> None:
    """A copy of no particular time, so that a stage which asks for it sees another one."""
    shutil.copyfile(source, target)
    os.utime(target, (0, 0))


def _link(source: str, target: str) -> None:
    """A link where a copy would take long."""
    try:
        if Path(source).stat().st_size <= COPIED:
            raise OSError
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _run(stage: "PipelineStage", place: Path, root: Path, log: Path, kind: str) -> None:
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    connects = stage.name.partition("@")[0] in MAY_CONNECT
    if connects:
        environment |= {name: os.environ[name] for name in FOR_FETCH if name in os.environ}
    folders = {name: place.with_name(name) for name in ("home", "tmp")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin:/usr/bin:/bin"]),
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["tmp"]),
        "USER": sandbox.HOST,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(HOOK),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DVC_STAGE": stage.addressing,
        "AURORA_TRACE": str(log),
        "AURORA_TRACE_BELOW": os.pathsep.join([str(place) + os.sep, str(root) + os.sep]),
    }
    plan = {
        "kind": kind,
        "command": stage.cmd if isinstance(stage.cmd, str) else "\n".join(["set -e", *stage.cmd]),
        "cwd": str(place),
        "home": str(folders["home"]),
        "root": str(place.with_name("root")),
        "network": connects,
        "environment": environment,
        "readable": sorted({str(path) for path in _installation(root)}),
        "writable": [str(path) for path in (place, log, *folders.values())],
    }
    file = place.with_name("plan.json")
    file.write_text(json.dumps(plan), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", sandbox.__file__, str(file)],
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


def _installation(root: Path) -> Iterator[Path]:
    """The system and this Python with its packages, without the repository itself."""
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent}
    yield HOOK
    for path in map(Path, SYSTEM):
        if path.exists():
            yield path
    for path in {*prefixes, *map(Path, site.getsitepackages()), *map(Path, sys.path)}:
        inside = any(prefix in (path, *path.parents) for prefix in prefixes)
        if path.is_absolute() and path.exists() and path != Path("/") and (inside or root not in (path, *path.parents)):
            if path == root or path in root.parents:
                continue
            yield path


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
    """Whether a stage may have to do with a file: its map, a dependency, one of `more`, or what is in one, or scratch."""
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
                yield f"{stage.addressing}: {out.def_path} has other bytes than in dvc.lock: of an input that is not declared, or by chance"
