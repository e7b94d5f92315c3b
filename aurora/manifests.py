"""The manifest that fetch writes beside the bytes of a source: what later stages know of where they are from."""

import re
from pathlib import Path, PurePosixPath

from aurora.errors import DataError
from aurora.store import read_json, sha256_file

MANIFEST = "manifest.json"
KEYS = frozenset(
    "source kind format uri pin revision licence non_commercial rows archive files".split()  # noqa: SIM905
)
READ = ("source", "kind", "format", "rows", "files")


def read_manifest(folder: Path, keys: tuple[str, ...] = READ) -> dict:
    """The manifest of a fetched folder; raises DataError if it is missing or lacks one of `keys`."""
    path = folder / MANIFEST
    manifest = read_json(path, f"fetch@{folder.name}")
    for key in keys:
        if not isinstance(manifest, dict) or key not in manifest:
            raise DataError(
                f"{path}: key '{key}' is missing; write it again by: dvc repro -f fetch@{folder.name}"
            )
    return manifest


def is_whole(manifest: object) -> bool:
    """Whether this is all that fetch writes now, rather than a damaged manifest or one of another form."""
    if not isinstance(manifest, dict) or not manifest.keys() >= KEYS:
        return False
    archive, files = manifest["archive"], manifest["files"]
    return (
        isinstance(files, list)
        and bool(files)
        and all(_names_a_file(entry) for entry in files)
        and (archive is None or _names_a_file(archive))
    )


def _names_a_file(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return False
    path = PurePosixPath(entry["path"])
    safe = path.parts and not path.is_absolute() and ".." not in path.parts and path.parts != (MANIFEST,)
    sound = re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))) and type(entry.get("bytes")) is int
    return bool(safe and sound and "\0" not in entry["path"])


def find_manifest(folder: Path) -> dict | None:
    """What a manifest says, complete or not; None for a folder that fetch did not write."""
    path = folder / MANIFEST
    return read_json(path, f"fetch@{folder.name}") if path.is_file() else None


def manifest_hash(folder: Path) -> str | None:
    """SHA-256 of the manifest in hex, which stands for every byte that was fetched; None without one."""
    path = folder / MANIFEST
    return sha256_file(path) if path.is_file() else None
