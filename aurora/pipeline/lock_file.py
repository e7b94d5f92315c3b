"""dvc.lock as records of runs: a merge of git that is still open, and what two branches know together."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from aurora.core.declared import DVC_YAML, VERSIONS
from aurora.core.errors import DataError
from aurora.core.params import PARAMS_FILE

LOCK = Path("dvc.lock")
MAP = (DVC_YAML, PARAMS_FILE, Path(VERSIONS))  # without which DVC knows no stage


def git(*arguments: str) -> str:
    """What git prints. Raises DataError with its last line where it fails, or is not there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise DataError(f"git: {error.strerror}; install it") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise DataError(f"git {arguments[0]}: {said[-1]}")
    return done.stdout


def unmerged() -> set[str]:
    """Files that a merge, rebase or cherry-pick of git has left in conflict, relative to here; empty outside of git."""
    try:
        listed = git("ls-files", "--unmerged", "-z")
    except DataError:
        return set()
    return {entry.partition("\t")[2] for entry in listed.split("\0") if entry}


def require_no_conflict() -> None:
    """Raises DataError where dvc.lock, or a file that says what the stages are, is in conflict."""
    left = unmerged()
    for file in MAP:
        if str(file) in left:
            raise DataError(
                f"{file}: git's merge has left a conflict here; resolve it, and: git add {file}"
                + (" && aurora merge" if str(LOCK) in left else "")
            )
    if str(LOCK) in left:
        raise DataError(
            f"{LOCK}: git's merge is open, since both branches have run stages; run: aurora merge && dvc repro,"
            " then git commit --all --no-edit"
        )
    if LOCK.is_file() and any(
        line.startswith(("<<<<<<< ", ">>>>>>> "))
        for line in LOCK.read_text(encoding="utf-8", errors="replace").splitlines()
    ):
        raise DataError(
            f"{LOCK}: holds git's conflict marks; restore one side by: git checkout HEAD -- {LOCK}, then dvc repro"
        )


def merged_records(
    base: Mapping[str, object], ours: Mapping[str, object], theirs: Mapping[str, object]
) -> tuple[dict[str, object], list[str], list[str]]:
    """Records by stage from both sides of a merge; which are theirs, and which both sides have changed (ours stay).

    A record is taken whole. Each says truly what one run read and wrote, so that DVC runs a stage whose record does not
    fit the merged inputs, and takes the outputs of the others from its cache.
    """
    found, taken, both = dict(ours), [], []
    for name in dict.fromkeys([*ours, *theirs, *base]):
        mine, other, before = ours.get(name), theirs.get(name), base.get(name)
        if other in (before, mine):
            continue
        if mine != before:
            both.append(name)
            continue
        taken.append(name)
        if other is None:
            del found[name]
        else:
            found[name] = other
    return found, taken, both
