"""Zip and tar files, unpacked without trust in what they say of themselves."""

import bz2
import errno
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from aurora.core.errors import AuroraError, ResourceError, SourceError
from aurora.core.files import remove
from aurora.intake.digests import Pins, file_entry, measure
from aurora.intake.disk import disk_error, free_bytes
from aurora.sources.uris import printable

BLOCK = 1 << 20  # bytes read at once
TOTAL_LIMIT = 8 << 30  # bytes that an archive may unpack to
RATIO_LIMIT = 200  # unpacked bytes for each byte of the archive; CSV and JSON stay below 30
RATIO_FROM = 16 << 20  # unpacked bytes up to which any ratio is fine
MEMBER_LIMIT = 200_000  # files, folders and links
# Bytes that a reader may take into memory at once: a header of a tar file, and the directory of a zip file.
HEADER_LIMIT = BLOCK
DIRECTORY_LIMIT = 32 << 20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of the others zipfile unpacks a whole block into memory
PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x5d\0\0": lzma.open,
}
# What the operating system says of a name or a place that no sound archive has.
IMPOSSIBLE = (None, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EILSEQ)


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    bytes: int
    """Size as the archive gives it."""
    folder: bool
    plain: bool
    """Whether it is a file or a folder, rather than a link, a device or a sparse file."""
    open: Callable[[], IO[bytes]]


class Bounded:
    """A file for an archive's reader, which takes no more of it at once, and no more in all, than is allowed."""

    def __init__(self, archive: Path, file: IO[bytes], largest: int) -> None:
        self.archive, self.file, self.largest = archive, file, largest
        self.size = archive.stat().st_size
        self.tell, self.seekable = file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Reads as a file does. Raises SourceError for a huge header, or at a place beyond the limits."""
        if size > self.largest:
            raise SourceError(f"{self.archive.name}: has a header that is too large; not unpacked")
        block = self.file.read(self.largest if size < 0 else size)
        refuse_bomb(self.archive, self.size, self.file.tell())
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seeks as a file does; a compressed one is decompressed up to there."""
        if whence == 0:
            refuse_bomb(self.archive, self.size, offset)
        return self.file.seek(offset, whence)


def unpack(archive: Path, member: str, out: Path) -> list[dict]:
    """Takes the files below `member`, a folder or file ("" for all), into the new folder `out`.

    Returns {path, sha256, bytes} of each. Links, devices, names that leave `out`, repeated names, and
    archives beyond the limits of this module are refused, and then `out` does not exist. Raises SourceError,
    and ResourceError if the disk is too small.
    """
    out.mkdir(parents=True)
    try:
        taken = list(_unpack(archive, member, out))
    except AuroraError:
        remove(out)
        raise
    except Exception as error:  # the readers raise almost any on damaged bytes
        remove(out)
        if isinstance(error, OSError) and error.errno not in IMPOSSIBLE:
            raise disk_error(f"{archive.name}: cannot be unpacked", error) from None
        reason = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        raise SourceError(
            f"{archive.name}: cannot be unpacked ({reason}); fetch it again, or give an archive that is neither damaged "
            "nor encrypted"
        ) from None
    if not taken:
        remove(out)
        raise SourceError(f"{archive.name}!/{member}: no such folder or file; correct the uri in params.yaml")
    return sorted(taken, key=lambda file: file["path"])


def _unpack(archive: Path, member: str, out: Path) -> Iterator[dict]:
    packed, free = archive.stat().st_size, free_bytes(out)
    names: set[str] = set()
    declared = needed = unpacked = 0
    with open(archive, "rb") as file, _members(archive, file) as members:
        for count, item in enumerate(members, 1):
            declared += max(0, item.bytes)
            refuse_bomb(archive, packed, declared, count)
            if _hidden(item.name):
                continue
            inside = _below(_safe(archive, item), member)
            if item.folder or inside is None:
                continue
            needed += item.bytes
            if needed > free:
                raise ResourceError(
                    f"{archive.name} unpacks to {needed:,} bytes or more, {free:,} are free; free some and run again"
                )
            name = inside.as_posix()
            if name.casefold() in names:
                raise SourceError(f"{archive.name}!/{item.name}: the name stands twice; not unpacked")
            names.add(name.casefold())
            (out / inside).parent.mkdir(parents=True, exist_ok=True)
            with item.open() as content, open(out / inside, "xb") as writer:
                while block := content.read(BLOCK):
                    unpacked += len(block)
                    refuse_bomb(archive, packed, unpacked)
                    writer.write(block)
            yield file_entry(name, measure(out / inside, Pins()))


def refuse_bomb(archive: Path, packed: int, unpacked: int, count: int = 0) -> None:
    """Raises SourceError where what an archive unpacks to, or the number of its members, is beyond the limits."""
    rule = None
    if unpacked > TOTAL_LIMIT:
        rule = f"more than {TOTAL_LIMIT:,} bytes"
    elif unpacked > max(RATIO_FROM, RATIO_LIMIT * packed):
        rule = f"more than {RATIO_LIMIT} times its size of {packed:,} bytes"
    elif count > MEMBER_LIMIT:
        rule = f"more than {MEMBER_LIMIT:,} files and folders"
    if rule:
        raise SourceError(f"{archive.name}: unpacks to {rule}, as archive bombs do; not unpacked")


def _safe(archive: Path, item: Member) -> PurePosixPath:
    path = PurePosixPath(item.name)
    fault = None
    if not item.plain or path.is_absolute() or ".." in path.parts or "\\" in item.name:
        fault = "a link, a device, or a name that leaves the folder"
    elif printable(item.name) != item.name:
        fault = "a name with a control character"
    if fault:
        raise SourceError(f"{archive.name}!/{printable(item.name)}: {fault}; not unpacked")
    return path


def _below(path: PurePosixPath, member: str) -> PurePosixPath | None:
    """The path as seen from `member`; the bare name where the member is this file; None for any other."""
    folder = PurePosixPath(member or ".")
    if path == folder:
        return PurePosixPath(path.name)
    return path.relative_to(folder) if path.is_relative_to(folder) else None


@contextmanager
def _members(archive: Path, file: IO[bytes]) -> Iterator[Iterator[Member]]:
    """The entries of a zip or tar file, each to be opened before the next one is asked for."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(Bounded(archive, file, DIRECTORY_LIMIT)) as reader:
            yield _of_zip(reader)
        return
    opener = next((opener for magic, opener in PACKED.items() if start.startswith(magic)), None)
    with opener(file) if opener else file as content:
        try:
            bounded: Any = Bounded(archive, content, HEADER_LIMIT)  # as much of a file as tarfile uses
            reader = tarfile.open(fileobj=bounded, mode="r:")  # noqa: SIM115
        except tarfile.ReadError:
            raise SourceError(f"{archive.name}: neither a zip nor a tar file; correct the uri in params.yaml") from None
        yield _of_tar(reader)


def _of_zip(reader: zipfile.ZipFile) -> Iterator[Member]:
    for item in reader.infolist():
        kind = (item.external_attr >> 16) & 0o170000  # 0 where no Unix wrote it
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        if item.compress_type not in METHODS:
            raise NotImplementedError(f"compression type {item.compress_type}")
        yield Member(item.filename, item.file_size, item.is_dir(), plain, lambda item=item: reader.open(item))


def _content(reader: tarfile.TarFile, item: tarfile.TarInfo) -> IO[bytes]:
    return reader.extractfile(item) or BytesIO()  # of a folder


def _of_tar(reader: tarfile.TarFile) -> Iterator[Member]:
    before = 0
    while (item := reader.next()) is not None:
        if item.size < 0 or reader.offset <= before:
            raise tarfile.ReadError("a size below zero")
        before = reader.offset
        # What the reader keeps of all members would fill the memory.
        reader.members.clear()  # pyrefly: ignore[missing-attribute]
        reader.pax_headers.clear()  # pyrefly: ignore[missing-attribute]
        plain = (item.isreg() and not item.issparse()) or item.isdir()
        yield Member(item.name, item.size, item.isdir(), plain, partial(_content, reader, item))
    reader.fileobj.seek(reader.offset)  # a reader takes a broken header for the end
    if reader.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end at byte {reader.offset:,}")


def _hidden(path: str) -> bool:
    # macOS leaves ._name and __MACOSX beside the real files in published archives.
    parts = PurePosixPath(path).parts
    return "__MACOSX" in parts or any(part.startswith("._") or part == ".DS_Store" for part in parts)
