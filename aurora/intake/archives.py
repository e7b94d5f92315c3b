"""Zip and tar files, unpacked without trust in what they say of themselves."""

import bz2
import errno
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from aurora.core.errors import ResourceError, SourceError
from aurora.core.files import remove
from aurora.intake.digests import BLOCK, Digests, Pins
from aurora.intake.disk import disk_error, room
from aurora.sources.uris import UNPRINTABLE

TOTAL_LIMIT = 8 << 30  # bytes that an archive may unpack to
RATIO_LIMIT = 200  # unpacked bytes an archive byte; CSV and JSON stay below 30
RATIO_FROM = 16 << 20  # unpacked bytes below which the ratio is not asked for
MEMBER_LIMIT = 200_000  # files, folders and links
# Bytes of headers that a reader may take into memory: of one tar member (names and paths have 4,096; some headers grow
# with the square of their size when read), and of a zip file's directory.
HEADER_LIMIT = 16 << 10
DIRECTORY_LIMIT = 32 << 20
# Of the other methods zipfile unpacks a block at once, be it to gigabytes.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open, b"\x5d\0\0": lzma.open}
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, struct.error,
    EOFError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError,
)  # fmt: skip
# What the operating system says of a name or a place that no sound archive has.
IMPOSSIBLE = (None, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EILSEQ)


@dataclass(frozen=True)
class Member:
    """One entry of an archive."""

    name: str
    bytes: int
    """As the archive says."""
    folder: bool
    plain: bool
    """Whether it is a file or a folder, rather than a link, a device or a file with holes."""
    source: object
    """What the archive's reader opens it by."""


class Metered:
    """A file for an archive's reader, which takes no more of it at once, and of a tar no more in all, than is allowed."""

    def __init__(self, archive: Path, packed: int, file: IO[bytes], header: int) -> None:
        self.archive, self.packed, self.file = archive, packed, file
        self.header: int | None = header
        """Bytes of headers that may still be read; None where the content of a file is read."""

    def read(self, size: int = -1) -> bytes:
        """Reads as a file does. Raises SourceError where headers are too large, or the place is beyond the limits."""
        if size < 0:  # of a zip file's end
            size = max(0, self.packed - self.file.tell())
        if self.header is not None:
            if size > self.header:
                raise SourceError(
                    f"{self.archive.name}: has a header that is too large to be sound; not unpacked"
                )
            self.header -= size
        block = self.file.read(size)
        refuse_bomb(self.archive, self.packed, self.file.tell())
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seeks as a file does; a packed one is unpacked up to there."""
        if whence == 0:
            refuse_bomb(self.archive, self.packed, offset)
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """The place in the unpacked bytes."""
        return self.file.tell()

    def seekable(self) -> bool:
        """As a file says."""
        return True


def unpack(archive: Path, member: str, out: Path) -> list[dict]:
    """Takes the files below `member`, a folder or file ("" for all), into the new folder `out`.

    Returns {path, sha256, bytes} of each. Links, devices, names that leave `out`, names that stand twice, and
    archives beyond the limits of this module are refused, and then `out` does not exist. Raises SourceError,
    and ResourceError if the disk is too small.
    """
    out.mkdir(parents=True)
    try:
        with _judged(archive):
            return _unpack(archive, member, out)
    except BaseException:
        remove(out)
        raise


@contextmanager
def _judged(archive: Path) -> Iterator[None]:
    """Says in one line what an archive's reader or the disk makes of it."""
    try:
        yield
    except OSError as error:
        if error.errno not in IMPOSSIBLE:
            raise disk_error(f"{archive.name}: cannot be unpacked", error) from None
        raise _damaged(archive, error.strerror or error) from None
    except (RuntimeError, NotImplementedError, UnicodeError, MemoryError) as error:
        # a password, an unknown compression, a name that is no text, a dictionary beyond this machine's memory
        raise SourceError(
            f"{archive.name}: cannot be unpacked ({printable(str(error)) or type(error).__name__}); give an archive without this"
        ) from None
    except DAMAGE as error:
        raise _damaged(archive, error) from None


def _damaged(archive: Path, reason: object) -> SourceError:
    return SourceError(f"{archive.name}: damaged archive ({printable(str(reason))}); fetch it again")


def _unpack(archive: Path, member: str, out: Path) -> list[dict]:
    packed, free = archive.stat().st_size, room(out)
    taken: dict[str, dict] = {}
    declared = needed = count = unpacked = 0
    with open(archive, "rb") as file, _open(archive, packed, file) as (reader, metered):
        for item in _members(reader, metered):
            count, declared = count + 1, declared + max(0, item.bytes)
            refuse_bomb(archive, packed, declared, count)
            if _hidden(item.name):
                continue
            path = _safe(archive, item)
            inside = _below(path, member)
            if item.folder or inside is None:
                continue
            needed += item.bytes
            if needed > free:
                raise ResourceError(
                    f"{archive.name} unpacks to {needed:,} bytes or more, {free:,} are free; free some and run again"
                )
            name = inside.as_posix()
            if name.casefold() in taken:
                raise SourceError(
                    f"{archive.name}!/{printable(item.name)}: the name stands twice; not unpacked"
                )
            target = out / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            digests = Digests(Pins())
            with _file(reader, item) as content, open(target, "xb") as writer:
                while block := content.read(BLOCK):
                    digests.update(block)
                    unpacked += len(block)
                    refuse_bomb(archive, packed, unpacked)
                    writer.write(block)
            taken[name.casefold()] = {"path": name, "sha256": digests.sha256, "bytes": digests.bytes}
    if not taken:
        raise SourceError(f"{archive.name}!/{member}: no such folder or file; correct the uri in params.yaml")
    return sorted(taken.values(), key=lambda file: file["path"])


def refuse_bomb(archive: Path, packed: int, unpacked: int, count: int = 0) -> None:
    """Raises SourceError where what an archive unpacks to, or the number of its members, is beyond the limits."""
    rule = None
    if unpacked > TOTAL_LIMIT:
        rule = f"more than {TOTAL_LIMIT:,} bytes"
    elif unpacked > RATIO_FROM and unpacked > RATIO_LIMIT * packed:
        rule = f"more than {RATIO_LIMIT} times its size of {packed:,} bytes"
    elif count > MEMBER_LIMIT:
        rule = f"more than {MEMBER_LIMIT:,} files and folders"
    if rule:
        raise SourceError(f"{archive.name}: unpacks to {rule}, as archive bombs do; not unpacked")


def _safe(archive: Path, item: Member) -> PurePosixPath:
    path = PurePosixPath(item.name)
    if not item.plain or path.is_absolute() or ".." in path.parts or "\\" in item.name:
        raise SourceError(
            f"{archive.name}!/{printable(item.name)}: a link, a device, or a name that leaves the folder; not unpacked"
        )
    item.name.encode()  # a name that is no text is a UnicodeError
    if printable(item.name) != item.name:
        raise SourceError(
            f"{archive.name}!/{printable(item.name)}: a name that no sound file has; not unpacked"
        )
    return path


def printable(name: str) -> str:
    """A name from an archive as a message may say it: in one line, and no command to a terminal."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", name[:1024])


def _below(path: PurePosixPath, member: str) -> PurePosixPath | None:
    """The path as seen from `member`; the bare name where the member is this file; None for any other."""
    folder = PurePosixPath(member or ".")
    if path == folder:
        return PurePosixPath(path.name)
    return path.relative_to(folder) if path.is_relative_to(folder) else None


@contextmanager
def _open(
    archive: Path, packed: int, file: IO[bytes]
) -> Iterator[tuple[zipfile.ZipFile | tarfile.TarFile, Metered]]:
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"PK"):
        metered = Metered(archive, packed, file, DIRECTORY_LIMIT)
        with zipfile.ZipFile(metered) as reader:
            metered.header = None
            yield reader, metered
        return
    opener = next((opener for magic, opener in PACKED.items() if start.startswith(magic)), None)
    with opener(file) if opener else file as content:
        metered = Metered(archive, packed, content, HEADER_LIMIT)
        try:
            reader = tarfile.open(fileobj=metered, mode="r:")  # noqa: SIM115 (it closes nothing)
        except tarfile.ReadError:
            raise SourceError(
                f"{archive.name}: neither a zip nor a tar file; correct the uri in params.yaml"
            ) from None
        yield reader, metered


def _members(reader: zipfile.ZipFile | tarfile.TarFile, metered: Metered) -> Iterator[Member]:
    if isinstance(reader, zipfile.ZipFile):
        for item in reader.infolist():
            kind = (item.external_attr >> 16) & 0o170000  # 0 where no Unix wrote it
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            if item.compress_type not in METHODS:
                raise NotImplementedError(f"compression type {item.compress_type}")
            yield Member(item.filename, item.file_size, item.is_dir(), plain, item)
        return
    before = 0
    while True:
        metered.header = HEADER_LIMIT
        if (item := reader.next()) is None:
            break
        metered.header = None
        if item.size < 0 or reader.offset <= before:
            raise tarfile.ReadError("a size below zero")
        before = reader.offset
        # What the reader keeps of each member and of headers for all members would fill the memory.
        reader.members.clear()
        reader.pax_headers.clear()
        plain = (item.isreg() and not item.issparse()) or item.isdir()
        yield Member(item.name, item.size, item.isdir(), plain, item)
    metered.seek(reader.offset)  # a reader takes a broken header for the end
    if metered.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end at byte {reader.offset:,}")


def _file(reader: zipfile.ZipFile | tarfile.TarFile, item: Member) -> IO[bytes]:
    return (
        reader.open(item.source) if isinstance(reader, zipfile.ZipFile) else reader.extractfile(item.source)
    )


def _hidden(path: str) -> bool:
    # macOS leaves ._name and __MACOSX beside the real files in published archives.
    parts = PurePosixPath(path).parts
    return "__MACOSX" in parts or any(part.startswith("._") or part == ".DS_Store" for part in parts)
