"""Free disk space, and what errors of the file system mean, each in one line."""

import errno
import shutil
from pathlib import Path

from aurora.core.errors import FULL, AuroraError, ResourceError, SourceError

REMEDIES = {
    errno.EACCES: "give yourself the right to it",
    errno.EPERM: "give yourself the right to it",
    errno.EROFS: "make its file system writable",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a file stands where a folder belongs: move it away",
    errno.EEXIST: "a file stands where a folder belongs: move it away",
}


def disk_error(place: str, error: OSError) -> AuroraError:
    """What an error of the file system means: ResourceError where the disk is full, else SourceError.

    `place` says what was being done; the message also names the file and the remedy.
    """
    reason = error.strerror or type(error).__name__
    file = f": {str(error.filename)[-200:]}" if error.filename else ""
    if error.errno in FULL:
        return ResourceError(f"{place}{file}: {reason}; free disk and run again")
    remedy = REMEDIES.get(error.errno or 0, "correct it and run again")
    return SourceError(f"{place}{file}: {reason}; {remedy}")


def existing(folder: Path) -> Path:
    """`folder`, or the nearest parent of it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """Bytes free for this user on the disk of `folder`, or of its nearest parent that exists."""
    return shutil.disk_usage(existing(folder)).free
