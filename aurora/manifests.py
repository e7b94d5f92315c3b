"""The manifest that fetch writes beside the bytes of a source: what later stages know of where they are from."""

from pathlib import Path

from aurora.errors import DataError
from aurora.store import read_json, sha256_file

MANIFEST = "manifest.json"


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
    """What a manifest says, complete or not; None for a folder that fetch did not write."""
    path = folder / MANIFEST
    return read_json(path, f"fetch@{folder.name}") if path.is_file() else None


def manifest_hash(folder: Path) -> str | None:
    """SHA-256 of the manifest in hex, which stands for every byte that was fetched; None without one."""
    path = folder / MANIFEST
    return sha256_file(path) if path.is_file() else None
