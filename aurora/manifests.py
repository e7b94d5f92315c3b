"""The manifest that fetch writes beside the bytes of a source: what later stages know of where they are from."""

from pathlib import Path

from pydantic import BaseModel

from aurora.errors import DataError
from aurora.store import read_checked, read_json, sha256_file

MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    """What a manifest says of a file, as far as a model's card and the hash of a base read it."""

    path: str
    sha256: str


class Facts(BaseModel):
    """What a manifest says of a source, as far as a card reads it; a key may be missing."""

    format: str | None = None
    uri: str | None = None
    revision: str | None = None
    licence: str | None = None
    non_commercial: bool = False
    files: list[FileEntry] = []


class Origin(Facts):
    """The same of training data, whose licence a card may not leave out."""

    uri: str
    licence: str


def read_manifest(folder: Path) -> dict:
    """The manifest of a fetched folder; raises DataError if it is missing or incomplete."""
    path = folder / MANIFEST
    manifest = read_json(path, f"fetch@{folder.name}")
    for key in ("source", "kind", "format", "rows", "files"):
        if not isinstance(manifest, dict) or key not in manifest:
            raise DataError(
                f"{path}: key '{key}' is missing; write it again by: dvc repro -f fetch@{folder.name}"
            )
    return manifest


def find_manifest(folder: Path) -> dict | None:
    """What a manifest says, complete or not; None for a folder that fetch did not write.

    Raises DataError for a value of a wrong type.
    """
    path = folder / MANIFEST
    return read_checked(path, Facts, f"fetch@{folder.name}") if path.is_file() else None


def read_origin(folder: Path) -> dict:
    """What the manifest of a fetched folder says, with `uri` and `licence` at least; raises DataError without."""
    return read_checked(folder / MANIFEST, Origin, f"fetch@{folder.name}")


def manifest_hash(folder: Path) -> str | None:
    """SHA-256 of the manifest in hex, which stands for every byte that was fetched; None without one."""
    path = folder / MANIFEST
    return sha256_file(path) if path.is_file() else None
