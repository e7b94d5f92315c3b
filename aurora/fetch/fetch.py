"""One source, by its URI, to a folder of verified bytes with a manifest beside them."""

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora.core.errors import AuroraError, ResourceError, SourceError
from aurora.core.files import remove, replacing, write_json
from aurora.core.locks import locked
from aurora.core.manifests import MANIFEST
from aurora.fetch.previous import recorded, take_again
from aurora.intake.archives import unpack
from aurora.intake.digests import Digests, Pins, copy, measure
from aurora.intake.disk import FULL, disk_error, existing, room
from aurora.sources.source import Source
from aurora.sources.uris import Address, non_commercial, parse

SCRATCH = Path(".aurora/downloads")  # ignored by git and DVC; survives a failed stage
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SKIPPED = ("__pycache__", ".cache", ".git", ".DS_Store")


def fetch(name: str, source: Source, out: Path, section: str = "sources") -> dict:
    """Brings `source`, of a section of params.yaml, to the folder `out`, whole or not at all, and returns its manifest.

    The manifest holds source, kind, format (the schema of the rows), uri, pin, revision, licence, non_commercial,
    rows, archive ({path, sha256, bytes} of the file that was unpacked, else null) and files ({path, sha256, bytes},
    sorted by path), with git_blob where that was a pin too. Bytes that the last fetch left here or in DVC's cache or
    remote are verified against pins and record and taken again without a connection; a model that is upcycled is made
    anew. Raises SourceError if the source is missing, unreachable, or differs from its pin, ModelError if it cannot be
    upcycled, and ResourceError if the disk is too small.
    """
    with _one_line(f"{section}.{name}"):
        return _fetch(name, source, out, section == "sources")


def _fetch(name: str, source: Source, out: Path, shared: bool) -> dict:
    address = parse(source.uri)
    former = None if address.local else recorded(name, source.uri, out, needed=source.pin == "record")
    _sweep(out)
    with replacing(out) as partial:
        if address.scheme == "embedded":
            from aurora.small_base import build  # heavy: torch and transformers

            build(partial)
            archive, files, revision = None, _measured(partial), None
        elif address.local:
            archive, files, revision = *_local(name, source, address, partial), None
        # What is upcycled is made by code that may have changed since, so it is never taken again.
        elif former and not source.upcycle and take_again(former, out, partial, _pins(source)):
            archive, files, revision = former["archive"], former["files"], former["revision"]
        elif address.scheme == "pypi":
            archive, files, revision = _package(name, source, address, out, partial)
        else:
            archive, files, revision = _remote(name, source, address, out, partial, shared)
        if not files:
            raise SourceError(f"{source.uri} holds no file")
        if any(file["path"] == MANIFEST for file in files):
            raise SourceError(f"{source.uri} holds a {MANIFEST}, which fetch writes; rename it")
        _refuse_pointers(partial, files)
        manifest = {
            "source": name,
            "kind": source.kind,
            "format": source.format,
            "uri": source.uri,
            "pin": source.pinned_by,
            "revision": revision,
            "licence": source.licence,
            "non_commercial": non_commercial(source.licence),
            "rows": source.rows,
            "archive": archive,
            "files": files,
        }
        if former and source.pin:
            _refuse_change(source, former, manifest)
            manifest["revision"] = former["revision"]  # a branch may move on without a change of these files
        write_json(partial / MANIFEST, manifest)
    return manifest


def _local(name: str, source: Source, address: Address, partial: Path) -> tuple[dict | None, list[dict]]:
    origin, pins = Path(address.path), _pins(source)
    try:
        if not origin.exists():
            raise SourceError(
                f"sources.{name}.uri: {address.path} does not exist; correct the path in params.yaml"
            )
        if origin.is_dir():
            if address.member is not None or pins != Pins():
                raise SourceError(f"{address.path} is a folder; pins and !/ are for a file")
            return None, _entries(dict(_copied(name, origin, partial)))
        _refuse_special(name, origin)
        if address.member is not None:
            digests = measure(origin, pins)
        else:
            _refuse_if_full([origin], partial)
            partial.mkdir(parents=True)
            digests = copy(origin, partial / origin.name, pins)
        if difference := digests.difference(origin):
            pin, expected, found = difference
            raise SourceError(
                f"sources.{name}.{pin}: expected {expected}, found {found} at {source.uri}; correct the file or the pin"
            )
    except OSError as error:
        if error.errno in FULL:
            raise
        raise SourceError(f"sources.{name}.uri: {error.filename or address.path}: {error.strerror}") from None
    entries = _entries({origin.name: digests})
    if address.member is None:
        return None, entries
    return entries[0], unpack(origin, address.member, partial)


def _copied(name: str, origin: Path, partial: Path) -> Iterator[tuple[str, Digests]]:
    files = [
        path for path in _files(origin) if not any(part in SKIPPED for part in path.relative_to(origin).parts)
    ]
    for path in files:
        _refuse_special(name, path)
    _refuse_if_full(files, partial)
    partial.mkdir(parents=True)
    for path in files:
        inside = path.relative_to(origin)
        (partial / inside).parent.mkdir(parents=True, exist_ok=True)
        yield inside.as_posix(), copy(path, partial / inside, Pins())


def _refuse_special(name: str, path: Path) -> None:
    if not path.is_file():
        raise SourceError(
            f"sources.{name}.uri: {path} is no file: a device, a pipe, or a link that leads nowhere; remove it"
        )


def _refuse_if_full(files: list[Path], partial: Path) -> None:
    size, free = sum(path.stat().st_size for path in files), room(partial)
    if size > free:
        raise ResourceError(f"{size:,} bytes are to be copied, {free:,} are free; free some and run again")


def _remote(
    name: str, source: Source, address: Address, out: Path, partial: Path, shared: bool
) -> tuple[dict | None, list[dict], str | None]:
    from aurora.hub import Unreachable, download

    try:
        with _alone(name, _scratch(out)) as scratch:
            # One folder a URI, so that the partial file of another address is never gone on with.
            folder = scratch / hashlib.sha256(source.uri.encode()).hexdigest()[:16]
            got = download(name, source.uri, address, _pins(source), folder)
            archive, entries = None, _entries(got.files)
            if address.member is None:
                partial.mkdir(parents=True)
                for entry in entries:
                    _place(folder / entry["path"], partial / entry["path"])
            else:
                archive = entries[0]
                entries = unpack(folder / archive["path"], address.member, partial)
            for path in scratch.glob("*/"):  # of earlier addresses too
                remove(path)
            return archive, entries, got.revision
    except Unreachable as error:
        remote = f"; or take it from the DVC remote: dvc pull {out.as_posix()}" if shared else ""
        raise SourceError(f"{error}{remote}") from None


def _package(
    name: str, source: Source, address: Address, out: Path, partial: Path
) -> tuple[dict, list[dict], str | None]:
    from aurora.upcycled_base import bring

    with _alone(name, _scratch(out)) as scratch:
        wheel = bring(source, address, _pins(source), scratch / "package", partial)
        remove(scratch / "package")
    return wheel, _measured(partial), address.revision


def _refuse_pointers(partial: Path, files: list[dict]) -> None:
    """Raises SourceError where Git LFS's stand-in for a file came in place of the file."""
    for file in files:
        if file["bytes"] < 1024 and (partial / file["path"]).read_bytes().startswith(LFS_POINTER):
            raise SourceError(
                f"{file['path']} is a Git LFS pointer, not the file; give an address that resolves "
                "it (…/resolve/… on the hub, media.githubusercontent.com), or run git lfs pull"
            )


def _refuse_change(source: Source, former: dict, manifest: dict) -> None:
    """Raises SourceError if the bytes are not those that the first fetch recorded."""
    for before, now in (
        (former["archive"], manifest["archive"]),
        *_pairs(former["files"], manifest["files"]),
    ):
        expected, found = ((entry or {}).get("sha256", "no such file") for entry in (before, now))
        if expected != found:
            path = (before or now)["path"]
            raise SourceError(
                f"{source.uri}: expected sha256 {expected} of {path}, as the first fetch recorded, found "
                f"{found}; the source has changed: to take it as it is now, pin its commit or sha256 in place of record"
            )


def _pairs(before: list[dict], now: list[dict]) -> Iterator[tuple[dict | None, dict | None]]:
    first, second = ({file["path"]: file for file in files} for files in (before, now))
    for path in sorted(first | second):
        yield first.get(path), second.get(path)


def _pins(source: Source) -> Pins:
    return Pins(source.bytes, source.sha256, source.git_blob)


def _entries(files: dict[str, Digests]) -> list[dict]:
    return [
        {"path": path, "sha256": digests.sha256, "bytes": digests.bytes}
        | ({"git_blob": digests.pins.git_blob} if digests.pins.git_blob else {})
        for path, digests in sorted(files.items())
    ]


def _measured(folder: Path) -> list[dict]:
    return _entries({path.relative_to(folder).as_posix(): measure(path, Pins()) for path in _files(folder)})


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if not path.is_dir()]


def _place(origin: Path, target: Path) -> None:
    """Links a download, whose scratch name is removed later: 90 GB are written once."""
    try:
        os.link(origin, target)
    except OSError:  # a file system without links, or the same one mounted twice
        shutil.move(origin, target)


def _scratch(out: Path) -> Path:
    """Where downloads grow: on the file system of `out`, so that they need no second copy and no other disk's room.

    It is below the outermost folder on the way to `out` that lies there: the repository's own, or data/, if that is a
    link or a mount. What does not lie in data/raw/KIND is in no output and no dependency.
    """
    place, target = Path(), existing(out).stat().st_dev
    for part in () if out.is_absolute() else out.parts[:-1]:
        if not place.is_dir() or place.stat().st_dev == target:
            break
        place /= part
    return place / SCRATCH


def _sweep(out: Path) -> None:
    """Removes what processes that were killed have left beside `out`, where the next stages would find it."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        owner = path.name.split(".")[-2]
        if not (owner.isdecimal() and Path("/proc", owner).exists()):
            remove(path)


@contextmanager
def _one_line(key: str) -> Iterator[None]:
    """Begins each error with its key in params.yaml, and says what the file system refuses, wherever that is."""
    try:
        yield
    except OSError as error:
        raise disk_error(key, error) from None
    except AuroraError as error:
        if str(error).startswith(key):
            raise
        raise type(error)(f"{key}: {error}") from None


@contextmanager
def _alone(name: str, below: Path = SCRATCH) -> Iterator[Path]:
    """Yields the folder of partial files of a source, which no second process has at the same time.

    The kernel lets go of it when a process ends, however it ends. A folder without bytes to go on with is removed.
    """
    scratch = below / name
    with locked(scratch / "lock"):
        try:
            yield scratch
        finally:
            if not any(path.is_file() and path.name != "lock" for path in scratch.rglob("*")):
                remove(scratch)
