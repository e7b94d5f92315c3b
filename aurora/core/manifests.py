"""The manifest that fetch writes beside the bytes of a source: where they come from, for later stages."""

from pathlib import Path
from typing import TypeGuard

from pydantic import BaseModel

from aurora.core.declared import FETCH_BASE
from aurora.core.errors import DataError
from aurora.core.files import dvc_hash, read_checked, read_json, sha256_file

MANIFEST = "manifest.json"
KEYS = frozenset(
    ["source", "kind", "format", "uri", "pin", "revision", "licence", "non_commercial", "rows", "archive", "files"]
)  # of what fetch writes now


class FileEntry(BaseModel):
    """A file of a manifest, with what model cards and the hash of a base read."""

    path: str
    sha256: str


class Facts(BaseModel):
    """A manifest, with what model cards read; any key may be missing."""

    uri: str | None = None
    revision: str | None = None
    licence: str | None = None
    non_commercial: bool = False
    files: list[FileEntry] = []


class SizedEntry(BaseModel):
    """A file of a manifest, with its size in bytes."""

    bytes: int


class Fetched(BaseModel):
    """A manifest, with what clean reports of a source."""

    source: str
    kind: str
    uri: str
    revision: str | None = None
    licence: str
    non_commercial: bool = False
    files: list[SizedEntry]


class Origin(BaseModel):
    """A source as clean reports it, for model cards and the report."""

    source: str
    kind: str
    uri: str
    revision: str | None
    licence: str
    non_commercial: bool
    bytes: int  # of all files
    path: str
    dvc_hash: str  # of the folder


class Origins(BaseModel):
    """The file sources.json of clean."""

    sources: list[Origin]


def read_manifest(folder: Path) -> dict:
    """The manifest of a fetched folder.

    Raises DataError if it is missing, lacks what the readers of rows need, or the path of one of its files.
    """
    path = folder / MANIFEST
    manifest = read_json(path, f"fetch@{folder.name}")
    for key in ("source", "kind", "format", "rows", "files"):
        if key not in manifest:
            raise DataError(f"{path}: key '{key}' is missing; write it again by: dvc repro -f fetch@{folder.name}")
    files = manifest.get("files", [])
    if not isinstance(files, list) or not all(_names_a_file(entry, ("path",)) for entry in files):
        raise DataError(
            f"{path}: not a manifest with path of each file; write it again by: dvc repro -f fetch@{folder.name}"
        )
    return manifest


def find_manifest(folder: Path) -> dict | None:
    """The manifest of a base, complete or not; None for a folder that fetch did not write.

    Raises DataError for a value of a wrong type.
    """
    path = folder / MANIFEST
    return read_checked(path, Facts, FETCH_BASE) if path.is_file() else None


def read_fetched(path: Path, producer: str) -> dict:
    """A manifest with every key of Fetched; `producer` as in `read_json`. Raises DataError for any other."""
    return read_checked(path, Fetched, producer)


def origin_of(folder: Path) -> dict:
    """What later stages need to know of a fetched folder that they do not read, as an Origin.

    Raises DataError for a manifest that does not say it.
    """
    manifest = read_fetched(folder / MANIFEST, f"fetch@{folder.name}")
    origin = {name: manifest.get(name) for name in ("source", "kind", "uri", "revision", "licence")}
    return origin | {
        "non_commercial": manifest.get("non_commercial", False),
        "bytes": sum(file["bytes"] for file in manifest["files"]),
        "path": folder.as_posix(),
        "dvc_hash": dvc_hash(folder),
    }


def read_origins(path: Path) -> list[dict]:
    """The sources that clean read, each as an Origin. Raises DataError if the file is missing or malformed."""
    return read_checked(path, Origins, "clean")["sources"]


def manifest_hash(folder: Path) -> str | None:
    """SHA-256 of the manifest in hex, which represents every byte that was fetched; None without one."""
    path = folder / MANIFEST
    return sha256_file(path) if path.is_file() else None


def is_whole(manifest: object) -> bool:
    """Whether this is a complete manifest as fetch writes it now."""
    if not isinstance(manifest, dict) or not manifest.keys() >= KEYS:
        return False
    archive, files = manifest["archive"], manifest["files"]
    return (
        isinstance(files, list)
        and bool(files)
        and all(_is_sound(entry) and entry["path"] != MANIFEST for entry in files)
        and (archive is None or _is_sound(archive))
    )


def _names_a_file(entry: object, keys: tuple[str, ...]) -> TypeGuard[dict]:
    if not isinstance(entry, dict) or not entry.keys() >= set(keys) or not isinstance(entry["path"], str):
        return False
    path = Path(entry["path"])
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in entry["path"]


def _is_sound(entry: object) -> bool:
    if not _names_a_file(entry, ("path", "sha256", "bytes")) or type(entry["bytes"]) is not int:
        return False
    return len(str(entry["sha256"])) == 64 and set(str(entry["sha256"])) <= set("0123456789abcdef")
