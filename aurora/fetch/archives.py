"""Zip and tar files, unpacked without trust in what they say of themselves."""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from aurora.errors import ResourceError, SourceError
from aurora.fetch.digests import BLOCK, Digests, Pins, room
from aurora.store import remove

TOTAL_LIMIT = 8 << 30  # bytes that an archive may unpack to
RATIO_LIMIT = 200  # unpacked bytes an archive byte; CSV and JSON stay below 30
RATIO_FROM = 16 << 20  # unpacked bytes below which the ratio is not asked for
MEMBER_LIMIT = 200_000


@dataclass(frozen=True)
class Member:
    """One entry of an archive that is not a folder."""

    name: str
    bytes: int
    """As the archive says."""
    plain: bool
    """Whether it is a file, rather than a link or a device."""
    source: object
    """What the archive's reader opens it by."""


def unpack(archive: Path, member: str, out: Path) -> list[dict]:
    """Takes the files below `member`, a folder or file ("" for all), into the new folder `out`.

    Returns {path, sha256, bytes} of each. Links, devices, names that leave `out`, names that stand twice, and
    archives beyond the limits of this module are refused, and then `out` does not exist. Raises SourceError,
    and ResourceError if the disk is too small.
    """
    out.mkdir(parents=True)
    try:
        return _unpack(archive, member, out)
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        remove(out)
        raise SourceError(f"{archive.name}: damaged archive ({error}); fetch it again") from None
    except (RuntimeError, NotImplementedError, UnicodeError) as error:  # a password, an unknown compression
        remove(out)
        raise SourceError(
            f"{archive.name}: cannot be unpacked ({error}); give an archive without this"
        ) from None
    except BaseException:
        remove(out)
        raise


def _unpack(archive: Path, member: str, out: Path) -> list[dict]:
    reader = _open(archive)
    packed, free = archive.stat().st_size, room(out)
    taken: dict[str, dict] = {}
    declared = count = unpacked = 0
    with reader:
        for item in _members(reader):
            count, declared = count + 1, declared + item.bytes
            _refuse_bomb(archive, packed, declared, count)
            if _hidden(item.name):
                continue
            path = _safe(archive, item)
            inside = _below(path, member)
            if inside is None:
                continue
            if declared > free:
                raise ResourceError(
                    f"{archive.name} unpacks to {declared:,} bytes or more, {free:,} are free; free some and run again"
                )
            name = inside.as_posix()
            if name.casefold() in taken:
                raise SourceError(f"{archive.name}!/{item.name}: the name stands twice; not unpacked")
            target = out / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            digests = Digests(Pins())
            with _file(reader, item) as file, open(target, "xb") as writer:
                while block := file.read(BLOCK):
                    digests.update(block)
                    unpacked += len(block)
                    _refuse_bomb(archive, packed, unpacked, count)
                    writer.write(block)
            taken[name.casefold()] = {"path": name, "sha256": digests.sha256, "bytes": digests.bytes}
    if not taken:
        raise SourceError(f"{archive.name}!/{member}: no such folder or file; correct the uri in params.yaml")
    return sorted(taken.values(), key=lambda file: file["path"])


def _refuse_bomb(archive: Path, packed: int, unpacked: int, count: int) -> None:
    rule = None
    if unpacked > TOTAL_LIMIT:
        rule = f"more than {TOTAL_LIMIT:,} bytes"
    elif unpacked > RATIO_FROM and unpacked > RATIO_LIMIT * packed:
        rule = f"more than {RATIO_LIMIT} times its size of {packed:,} bytes"
    elif count > MEMBER_LIMIT:
        rule = f"more than {MEMBER_LIMIT:,} files"
    if rule:
        raise SourceError(f"{archive.name}: unpacks to {rule}, as archive bombs do; not unpacked")


def _safe(archive: Path, item: Member) -> PurePosixPath:
    path = PurePosixPath(item.name)
    if not item.plain or path.is_absolute() or ".." in path.parts or "\\" in item.name or "\0" in item.name:
        raise SourceError(
            f"{archive.name}!/{item.name}: a link or a name that leaves the folder; not unpacked"
        )
    item.name.encode()  # a name that is no text is a UnicodeError
    return path


def _below(path: PurePosixPath, member: str) -> PurePosixPath | None:
    """The path as seen from `member`; the bare name where the member is this file; None for any other."""
    folder = PurePosixPath(member or ".")
    if path == folder:
        return PurePosixPath(path.name)
    return path.relative_to(folder) if path.is_relative_to(folder) else None


def _open(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    if zipfile.is_zipfile(archive):
        return zipfile.ZipFile(archive)
    if tarfile.is_tarfile(archive):
        return tarfile.open(archive)
    raise SourceError(f"{archive.name}: neither a zip nor a tar file; correct the uri in params.yaml")


def _members(reader: zipfile.ZipFile | tarfile.TarFile) -> Iterator[Member]:
    if isinstance(reader, zipfile.ZipFile):
        for item in reader.infolist():
            link = (item.external_attr >> 16) & 0o170000 == 0o120000
            if not item.is_dir():
                yield Member(item.filename, item.file_size, not link, item)
    else:
        for item in reader:
            if not item.isdir():
                yield Member(item.name, item.size, item.isreg(), item)


def _file(reader: zipfile.ZipFile | tarfile.TarFile, item: Member) -> IO[bytes]:
    return (
        reader.open(item.source) if isinstance(reader, zipfile.ZipFile) else reader.extractfile(item.source)
    )


def _hidden(path: str) -> bool:
    # macOS leaves ._name and __MACOSX beside the real files in published archives.
    parts = PurePosixPath(path).parts
    return "__MACOSX" in parts or any(part.startswith("._") or part == ".DS_Store" for part in parts)
