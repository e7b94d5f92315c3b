"""What dvc.lock records of outputs: inputs of a stage are held against it, and scratch is kept until it names the result."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aurora.core.declared import DVC_YAML
from aurora.core.errors import DataError, ResourceError
from aurora.core.files import dvc_hash, flush, remove, write_json
from aurora.core.yaml_files import read_yaml

LOCK = Path("dvc.lock")
SCRATCH = Path(".aurora")
HASHED_ALWAYS = 2**30  # bytes of an input that every stage hashes, in a second or two
# These read a model whole in any case, mostly from memory once it has been hashed. eval compares the hash that it takes for
# its own records, and format reads nothing but the tokeniser of a large base.
HASH_ALL = ("sft", "merge", "checkpoints")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one record of dvc.lock says of an output."""

    stage: str
    hash: str  # DVC's: MD5, with `.dir` behind a folder's
    size: int  # bytes


@cache
def recorded_outs() -> dict[Path, tuple[Recorded, ...]]:
    """Outputs that dvc.lock records, by their path; two stages may have one, such as fetch and fetch_hub of a source."""
    stages = (read_yaml(LOCK).get("stages") or {}) if LOCK.is_file() else {}
    found: dict[Path, tuple[Recorded, ...]] = {}
    for stage, record in stages.items():
        for out in record.get("outs") or ():
            entry = Recorded(stage, out.get("md5", ""), out.get("size", 0))
            found[Path(out["path"])] = (*found.get(Path(out["path"]), ()), entry)
    return found


def require_recorded_inputs(stage: str) -> None:
    """Raises DataError where an input is not what the stage that wrote it left.

    Stages that HASH_ALL does not name leave out inputs of more than HASHED_ALWAYS bytes. DVC takes a file of the same size
    and time for the same, so that a flipped bit would go into all that follows.
    """
    deps = _deps(stage)
    for path, records in recorded_outs().items():
        hashed = stage in HASH_ALL or max(record.size for record in records) <= HASHED_ALWAYS
        if hashed and any(_overlap(path, dep) for dep in deps) and path.exists():
            require_recorded(path, dvc_hash(path))


def require_recorded(path: Path, found: str) -> None:
    """Raises DataError where dvc.lock records `path`, but not with the hash that was `found`."""
    records = recorded_outs().get(path, ()) if "DVC_STAGE" in os.environ else ()
    if records and found not in {record.hash for record in records}:
        maker = records[-1].stage
        raise DataError(
            f"{path}: has other bytes than dvc.lock records for {maker} (a flipped bit, or an edit); `aurora verify` names"
            f" the file and the remedy; after an edit that is meant: dvc commit {maker}"
        )


def keep_until_recorded(scratch: Path, outs: Sequence[Path] = ()) -> None:
    """Marks the scratch of finished work, which DVC may still lose: removed once dvc.lock names its outputs.

    Without `outs` those of the stage count as they are in the work tree. By hand there is no DVC, and it goes at once.
    """
    if stage := os.environ.get("DVC_STAGE"):
        content = {"stage": stage, "outs": {path.as_posix(): dvc_hash(path) for path in outs}}
        write_json(_marker(scratch), content)
        flush(scratch.parent)
    else:
        remove(scratch)


def remove_recorded() -> None:
    """Removes the scratch of finished work whose outputs dvc.lock names."""
    for marker in sorted(SCRATCH.glob("*/*.finished")):
        scratch = marker.with_suffix("")
        try:
            content = json.loads(marker.read_text(encoding="utf-8"))
            stage, outs = content["stage"], content["outs"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another process, or damaged: `aurora doctor` names the scratch
        recorded = {
            path: record.hash
            for path, records in recorded_outs().items()
            for record in records
            if record.stage == stage
        }
        if outs:
            named = all(recorded.get(Path(path)) == hashed for path, hashed in outs.items())
        else:
            named = bool(recorded) and all(
                path.exists() and dvc_hash(path) == hashed for path, hashed in recorded.items()
            )
        if named:
            remove(scratch)
            remove(marker)


def _marker(scratch: Path) -> Path:
    return scratch.with_name(f"{scratch.name}.finished")


def require_cache(needed: int = 0) -> None:
    """Raises ResourceError where DVC could not take what a stage is about to write: its cache's rights and disk.

    `needed` is the bytes to be written. Where DVC does not run the stage, nothing is asked.
    """
    if "DVC_STAGE" not in os.environ or not Path(".dvc").is_dir():  # by hand, or in the sandbox of a trace
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".aurora-{os.getpid()}"
        probe.write_bytes(b"aurora")
        probe.unlink()
        found = os.statvfs(folder)
    except OSError as error:
        raise ResourceError(
            f"{folder}: DVC's cache takes no file ({error.strerror}); the outputs would be lost: see aurora doctor"
        ) from None
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise ResourceError(
            f"{folder}: the disk of DVC's cache has {free / 2**30:.2f} GiB free, and the outputs take"
            f" {needed / 2**30:.2f} GiB; free some (dvc gc --workspace), or move the cache (dvc cache dir)"
        )


def cache_folder() -> Path:
    """The path of DVC's cache, by all of its config files."""
    from dvc.config import Config

    folder = Config(str(Path(".dvc").absolute()), validate=False)["cache"].get("dir")
    return Path(".dvc", folder) if folder else Path(".dvc/cache")


def _deps(stage: str) -> list[Path]:
    name, _, instance = stage.partition("@")
    entry = read_yaml(DVC_YAML)["stages"].get(name, {})
    values = entry.get("foreach") or {}
    item = values.get(instance) if isinstance(values, dict) else None
    found = []
    for dep in entry.get("do", entry).get("deps") or ():
        text = str(dep).replace("${key}", instance)
        for name, value in (item or {}).items() if isinstance(item, dict) else ():
            text = text.replace(f"${{item.{name}}}", str(value))
        found.append(Path(text))
    return found


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents
