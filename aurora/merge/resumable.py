"""A folder that takes long to write: kept when the process dies, finished by the next, never taken for whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora.core.errors import AuroraError
from aurora.core.files import remove
from aurora.core.locks import locked

BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def resuming(out: Path, inputs: object) -> Iterator[Path]:
    """Yields a scratch folder beside `out` and renames it to `out` on success.

    The scratch is named by a hash of `inputs` (JSON): what a killed process left there, by `whole`, is found again
    by the next run with equal inputs, and removed by a run with others. Raises LockedError while another process
    writes `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.{_key(inputs)}.partial")
    for stale in out.parent.glob(f".{out.name}.*.partial"):
        if stale != scratch:
            with locked(stale):
                remove(stale)
    scratch.mkdir(exist_ok=True)
    with locked(scratch):
        for half in scratch.glob("*.partial"):
            remove(half)
        yield scratch
        if out.is_symlink() or out.is_file():
            out.unlink()
        elif out.is_dir():
            shutil.rmtree(out)
        os.replace(scratch, out)


@contextmanager
def discarding(scratch: Path) -> Iterator[None]:
    """Removes `scratch` where writing it fails for a mistake in the input or the disk, which no later run can go on from."""
    try:
        yield
    except (AuroraError, OSError):
        remove(scratch)
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a name to write to, which becomes `path` once everything is written."""
    partial = path.with_name(f"{path.name}.partial")
    remove(partial)
    yield partial
    os.replace(partial, path)


def _key(inputs: object) -> str:
    # A process that dies leaves what it wrote in the kernel's hands; a machine that dies may lose it, and then
    # a renamed file can be hollow. So nothing is resumed across a boot.
    boot = BOOT.read_text(encoding="ascii").strip() if BOOT.is_file() else str(os.getpid())
    text = json.dumps([inputs, boot], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
