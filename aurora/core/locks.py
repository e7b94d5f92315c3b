"""One process at a time: a lock that the kernel releases however its holder ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aurora.core.errors import ResourceError


class LockedError(ResourceError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock on `path`, a folder that exists or a file that is made and names this process.

    Raises LockedError if another process holds it. File systems that cannot lock (NFS folders among them) let
    everybody in.
    """
    folder = path.is_dir()
    if not folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = "" if folder else os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                remedy = f", or end it by: kill {holder}" if holder else ", or end it"
                raise LockedError(
                    f"{path}: {f'process {holder}' if holder else 'another process'} is working here;"
                    f" wait for its end{remedy}"
                ) from None
        if not folder:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder_of(path: Path) -> str:
    """The id of the process that holds the lock on a file, or nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
