"""Why `dvc repro` would run a stage now, in words."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.declared import DVC_YAML, VERSIONS, libraries, other_version
from aurora.core.errors import DataError, ResourceError
from aurora.core.yaml_files import read_yaml
from aurora.pipeline.lock_file import require_no_conflict

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

WORDS = {"modified": "was edited", "new": "is new", "deleted": "is gone", "not in cache": "is not in the cache"}


def reasons(repo: "Repo", names: Sequence[str]) -> dict[str, list[str]]:
    """Why stages and those before them would run: lines by stage, in the order in which they would run.

    A name is a stage of dvc.yaml, an instance (`eval@tuned`) or a stage with instances (`eval`); no name means all.
    A stage that is up to date is left out. Raises DataError for a name that dvc.yaml does not have.
    """
    found: dict[str, list[str]] = {}
    for stage in in_order(repo, names):
        if not any(item.hash_info for item in (*stage.deps, *stage.outs)):
            found[stage.addressing] = ["dvc.lock knows no run of it", *_versions(stage)]
            continue
        status = stage.status(check_updates=True).get(stage.addressing, [])
        lines = [line for entry in status for line in _lines(repo, stage, entry)]
        outs = {out.fs_path: before.addressing for before in _before(repo, stage) for out in before.outs}
        for dep in stage.deps:
            makers = {outs[path] for path in outs if overlap(path, dep.fs_path)}
            lines += [f"{dep.def_path} may change, since {maker} runs before" for maker in sorted(makers & set(found))]
        if lines:
            found[stage.addressing] = [*lines, *_versions(stage)]
    return found


NOTHING_HERE = "no output is here yet; dvc pull brings them from a remote, dvc repro makes them"
MISSING = (" is gone", " is not in the cache", " runs before")  # how a line ends that says no more than that


def beyond_missing(repo: "Repo", found: dict[str, list[str]]) -> dict[str, list[str]] | None:
    """Where not one output is here, as in a fresh clone, the reasons besides that; None where some output is here."""
    if any(out.exists for stage in repo.index.stages for out in stage.outs if out.use_cache):
        return None
    others = {name: [line for line in lines if not line.endswith(MISSING)] for name, lines in found.items()}
    return {name: lines for name, lines in others.items() if lines}


def _versions(stage: "PipelineStage") -> Iterator[str]:
    """Libraries of which another version is installed than the one that DVC tracks: the stage would stop."""
    for dep in stage.deps:
        if dep in stage.params and dep.def_path == VERSIONS:
            yield from _others(VERSIONS, libraries(dep.read_params()))
        elif (file := Path(dep.def_path, VERSIONS)).is_file():  # of a folder that a source is made by
            yield from _others(file, read_yaml(file))


def _others(file: str | Path, tracked: Mapping[str, object]) -> Iterator[str]:
    for name, value in tracked.items():
        if here := other_version(name, value):
            yield f"but would stop: {name} {here} is installed, and {file} tracks {value}"


def in_order(repo: "Repo", names: Sequence[str]) -> list["PipelineStage"]:
    """These stages and those before them, or all, each behind those that it needs. Raises DataError for an unknown name."""
    import networkx

    wanted = named(repo, names)
    graph = repo.index.graph  # an edge leads from a stage to one that it needs
    needed = wanted.union(*(networkx.descendants(graph, stage) for stage in wanted))
    order = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
    return [stage for stage in order if stage in needed]


def named(repo: "Repo", names: Sequence[str]) -> set["PipelineStage"]:
    """The stages of these names, or all. Raises DataError for an unknown one."""
    from dvc.exceptions import DvcException

    wanted = set() if names else set(repo.index.stages)
    for name in names:
        try:
            wanted |= {stage for stage, _ in repo.stage.collect_granular(name)}
        except DvcException:
            stages = sorted(stage.addressing for stage in repo.index.stages)
            raise DataError(f"dvc.yaml: no stage is named {name}; there are {', '.join(stages)}") from None
    return wanted


def frozen(root: Path) -> list[str]:
    """Stages, or instances of one, that dvc.yaml has as frozen: DVC runs them for no change."""
    if not (root / DVC_YAML).is_file():
        return []
    found = []
    for name, entry in read_yaml(root / DVC_YAML)["stages"].items():
        if entry.get("frozen") or (entry.get("do") or {}).get("frozen"):
            found.append(name)
    return found


def _before(repo: "Repo", stage: "PipelineStage") -> list["PipelineStage"]:
    return list(repo.index.graph.successors(stage))


def overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one is inside the other."""
    one_path, other_path = Path(one), Path(other)
    return one_path == other_path or one_path in other_path.parents or other_path in one_path.parents


def _lines(repo: "Repo", stage: "PipelineStage", entry: str | Mapping) -> Iterator[str]:
    if isinstance(entry, str):
        yield {"changed command": "its command in dvc.yaml was edited"}.get(entry, entry)
        return
    for kind, changes in entry.items():
        for path, change in changes.items():
            listed = [item for item in (*stage.deps, *stage.outs) if item.def_path == path]
            if listed and not any(item.hash_info for item in listed):
                yield f"{path} is new in dvc.yaml"
            elif isinstance(change, Mapping):
                yield from _params(repo, stage, path, list(change))
            elif kind == "changed outs":
                yield f"its output {path} {WORDS.get(change, change)}"
            else:
                files = _files(repo, stage, path) if change == "modified" else []
                yield f"{path} {WORDS.get(change, change)}" + (f": {_listed(files)}" if files else "")


def _listed(files: list[str]) -> str:
    return ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")


def _params(repo: "Repo", stage: "PipelineStage", path: str, keys: list[str]) -> Iterator[str]:
    (dep,) = (dep for dep in stage.params if dep.def_path == path)
    now = dep.read_params()
    before = dep.hash_info.value if dep.hash_info else {}
    for key in sorted(keys):
        old, new = dict(_flat(key, (before or {}).get(key))), dict(_flat(key, now.get(key)))
        for name in sorted(old.keys() | new.keys()):
            if name not in old:
                yield f"{path}: {name} is new: {new[name]}"
            elif name not in new:
                yield f"{path}: {name} is gone, was {old[name]}"
            elif old[name] != new[name]:
                yield f"{path}: {name} from {old[name]} to {new[name]}"


def _flat(key: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    elif value is not None or "." in key:
        yield key, "null" if value is None else str(value)


def _files(repo: "Repo", stage: "PipelineStage", path: str) -> list[str]:
    """Files of a changed folder that differ from those of the last run, where the cache still lists these."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    (dep,) = (dep for dep in stage.deps if dep.def_path == path)
    if not dep.hash_info or not dep.hash_info.isdir:
        return []
    try:
        before = Tree.load(dep.cache, dep.hash_info)
    except (FileNotFoundError, ObjectFormatError):
        return _files_in_git(path)  # no output of a stage: the cache has never had it
    _, _, now = build(dep.cache, dep.fs_path, dep.fs, dep.hash_name, ignore=repo.dvcignore, dry_run=True)
    old, new = ({"/".join(key): hash_info.value for key, _, hash_info in tree} for tree in (before, now))
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _files_in_git(path: str) -> list[str]:
    """Files below a folder that differ from those of the commit that wrote dvc.lock last, as git knows it."""

    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return [name for name in done.stdout.split("\0") if name.strip()]

    commit = git("log", "-1", "--format=%H", "--", "dvc.lock")
    if not commit:
        return []
    names = git("diff", "--name-only", "--relative", "-z", commit[0].strip(), "--", path)
    names += git("ls-files", "--others", "--exclude-standard", "-z", "--", path)
    return sorted(Path(name).relative_to(path).as_posix() for name in names)


@contextmanager
def open_repository() -> Iterator["Repo"]:
    """The DVC repository whose root is the working directory.

    Raises DataError for another, if DVC cannot read it or its cache, and where a merge of git is open in its files.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    require_no_conflict()
    try:
        with Repo() as repo:
            if not DVC_YAML.is_file():
                raise DataError(f"{DVC_YAML}: not found; run this in the root of the repository")
            yield repo
    except NotDvcRepoError:
        raise DataError("no .dvc folder here or above; run this in the repository") from None
    except DvcException as error:
        raise DataError(f"DVC: {error}") from None
    except OSError as error:
        raise cache_error(error) from None


def cache_error(error: OSError) -> ResourceError:
    """What it means that DVC cannot read its own files."""
    place = f"{error.filename}: " if error.filename else ""
    return ResourceError(
        f"DVC: {place}{error.strerror or error}; is the disk of the cache mounted, and may you use it? See: aurora doctor"
    )
