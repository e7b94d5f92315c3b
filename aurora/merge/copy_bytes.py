"""Bytes from file to file by the kernel: shared where the file system can, copied where it cannot."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from aurora.core.errors import ModelError, ResourceError
from aurora.core.files import remove

FICLONE = 0x40049409  # ioctl of Linux: the target shares the source's blocks until either is written
BLOCK = 32 * 2**20  # bytes at a time, so that progress is seen
CANNOT = (
    errno.EXDEV,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
    errno.EMLINK,
    errno.EACCES,
    errno.ETXTBSY,
)


def reflink(source: Path, target: Path) -> bool:
    """Makes `target` a copy that shares its blocks with `source`, if the file system can; else leaves nothing."""
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer, FICLONE, reader.fileno())
            return True
        except OSError as error:
            if error.errno not in CANNOT:
                raise
    target.unlink()
    return False


def hard_link(source: Path, target: Path) -> bool:
    """Makes `target` another name of the file that `source` is or points to, if the file system can."""
    try:
        os.link(source.resolve(), target)  # resolved: Linux would link the symbolic link itself
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return False
    return True


def ways_to_share(source: Path, probe: Path) -> tuple[bool, bool]:
    """Whether files like `source` can be reflinked, and whether they can be shared at all; tried out at `probe`."""
    try:
        remove(probe)
        if reflink(source, probe):
            return True, True
        return False, hard_link(source, probe)
    finally:
        remove(probe)


def copy_range(
    reader: FileIO, writer: FileIO, begin: int, end: int, advance: Callable[[int], object] = lambda count: None
) -> None:
    """Copies the bytes from `begin` to `end` to the same place in `writer`; raises ModelError if they end early."""
    by_kernel = hasattr(os, "copy_file_range")
    while begin < end:
        count = min(BLOCK, end - begin)
        if by_kernel:
            try:
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), count, begin, begin)
            except OSError as error:
                if error.errno not in CANNOT:
                    raise
                copied = 0
            if not copied:  # some file systems say so instead of failing
                by_kernel = False
                continue
        else:
            content = os.pread(reader.fileno(), count, begin)
            if not content:
                raise ModelError(f"{reader.name}: ends at byte {begin:,}, before its header says; fetch it again")
            write_all(writer, content, begin)
            copied = len(content)
        begin += copied
        advance(copied)


def write_all(writer: FileIO, content: memoryview | bytes, at: int) -> None:
    """Writes all of `content` at byte `at`."""
    content = memoryview(content).cast("B")
    while len(content):
        written = os.pwrite(writer.fileno(), content, at)
        content, at = content[written:], at + written


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turns an OSError, a full disk above all, into a ResourceError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room and run again" if full else "see to the disk and run again"
        raise ResourceError(f"{error.filename or out}: {error.strerror or error}; {remedy}") from None
