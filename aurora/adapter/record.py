"""What a model was made from, by hashes of content that DVC and the fetch manifests know too."""

import hashlib
import re
from pathlib import Path

from pydantic import BaseModel

from aurora.core.errors import ModelError
from aurora.core.files import read_checked
from aurora.core.manifests import find_manifest

RECORD = "training.json"  # in the adapter folder


class TrainedBase(BaseModel):
    """`base` of a training record; None for what its manifest does not say."""

    uri: str | None
    revision: str | None
    licence: str | None
    weights_sha256: str | None


class TrainedRows(BaseModel):
    """`rows` of a training record: DVC hashes of both files, and training rows by source."""

    train: str
    held_out: str
    sources: dict[str, int]


class TrainingRecord(BaseModel):
    """The shape of training.json, as `training_record` makes it; `start_from` alone may be missing."""

    base: TrainedBase
    rows: TrainedRows
    start_from: dict | None = None
    sft: dict[str, object]
    quantization: dict[str, object]
    versions: dict[str, str]


def hub_address(base: Path) -> tuple[str, str | None] | None:
    """OWNER/NAME and commit of a base from the hub, by its manifest; None for one from elsewhere."""
    manifest = find_manifest(base) or {}
    found = re.fullmatch(r"hf://([^@]+)@([^/]+)", manifest.get("uri") or "")
    return (found[1], manifest.get("revision") or found[2]) if found else None


def weights_hash(base: Path) -> str | None:
    """SHA-256 over name and SHA-256 of each safetensors file in the base's manifest, in hex; None without one.

    Licence, URI and tokeniser are left out: the same weights fetched from elsewhere are the same base.
    """
    files = (find_manifest(base) or {}).get("files", ())
    weights = sorted(f"{file['sha256']}  {file['path']}\n" for file in files if file["path"].endswith(".safetensors"))
    if not weights:
        return None
    return hashlib.sha256("".join(weights).encode()).hexdigest()


def read_record(adapter: Path) -> dict:
    """The record of a training of this project; empty for an adapter from elsewhere.

    Raises DataError for a record that is not whole, since an adapter could then be merged into another base.
    """
    path = adapter / RECORD
    return read_checked(path, TrainingRecord, "sft") if path.is_file() else {}


def check_base(adapter: Path, base: Path) -> bool:
    """Whether the adapter's record names these weights; False where either has no hash to compare.

    Raises ModelError for another base.
    """
    trained = read_record(adapter).get("base", {}).get("weights_sha256")
    found = weights_hash(base)
    if trained and found and trained != found:
        raise ModelError(
            f"{adapter}: trained on a base with weights {trained[:16]}…, but {base} has {found[:16]}…; "
            "merge it into the base it was trained on, or train again: dvc repro sft"
        )
    return bool(trained and found)
