"""What a model was made from, by hashes of content that DVC and the fetch manifests know too."""

import hashlib
from pathlib import Path

from pydantic import BaseModel

from aurora.errors import ModelError
from aurora.manifests import find_manifest
from aurora.params.quantization import Quantization
from aurora.params.sft import Sft
from aurora.store import dvc_hash, read_checked
from aurora.tables import read_parquet

RECORD = "training.json"  # in the adapter folder
LIBRARIES = ("accelerate", "bitsandbytes", "peft", "torch", "transformers", "trl")


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
    """The shape of training.json, as `training_record` makes it; no key may be missing."""

    base: TrainedBase
    rows: TrainedRows
    sft: dict[str, object]
    quantization: dict[str, object]
    versions: dict[str, str]


def weights_hash(base: Path) -> str | None:
    """SHA-256 over name and SHA-256 of each safetensors file in the base's manifest, in hex; None without one.

    Licence, URI and tokeniser are left out: the same weights fetched from elsewhere are the same base.
    """
    files = (find_manifest(base) or {}).get("files", ())
    weights = sorted(
        f"{file['sha256']}  {file['path']}\n" for file in files if file["path"].endswith(".safetensors")
    )
    if not weights:
        return None
    return hashlib.sha256("".join(weights).encode()).hexdigest()


def training_record(base: Path, rows: Path, sft: Sft, quantization: Quantization) -> dict:
    """What training.json in the adapter folder holds: base, rows, recipe and versions; no time, no machine."""
    from importlib.metadata import version

    libraries = (*LIBRARIES, "torchao") if sft.optim == "adamw_torch_4bit" else LIBRARIES
    manifest = find_manifest(base) or {}
    counts: dict[str, int] = {}
    table = read_parquet(rows / "train.parquet", "format")
    for source in table["source"].to_pylist() if "source" in table.column_names else ():
        counts[source] = counts.get(source, 0) + 1
    return {
        "base": {name: manifest.get(name) for name in ("uri", "revision", "licence")}
        | {"weights_sha256": weights_hash(base)},
        "rows": {
            "train": dvc_hash(rows / "train.parquet"),
            "held_out": dvc_hash(rows / "held_out.parquet"),
            "sources": dict(sorted(counts.items())),
        },
        "sft": sft.model_dump(mode="json"),
        "quantization": quantization.model_dump(mode="json"),
        "versions": {name: version(name) for name in libraries},
    }


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
