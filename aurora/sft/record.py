"""What a training writes beside its adapter: base, rows, recipe and versions, by hashes that DVC knows too."""

from pathlib import Path

from aurora.adapter.record import read_record, weights_hash
from aurora.core.declared import installed
from aurora.core.files import dvc_hash
from aurora.core.manifests import find_manifest
from aurora.core.parquet import read_parquet
from aurora.model.quantization import Quantization
from aurora.sft.params import Sft
from aurora.sft.start import start_folder

LIBRARIES = ("accelerate", "bitsandbytes", "peft", "torch", "transformers", "trl")


def started_from(sft: Sft) -> dict | None:
    """The adapter that the training went on from, with its own record, which may name a further one."""
    if sft.start_from is None:
        return None
    record = read_record(start_folder(sft.start_from))
    return {"sha256": sft.start_from.sha256, "record": record or None}


def training_record(base: Path, rows: Path, sft: Sft, quantization: Quantization) -> dict:
    """What training.json in the adapter folder holds: base, rows, recipe and versions; no time, no machine."""
    libraries = (*LIBRARIES, "torchao") if sft.optim == "adamw_torch_4bit" else LIBRARIES
    manifest = find_manifest(base) or {}
    counts: dict[str, int] = {}
    table = read_parquet(rows / "train.parquet", "format")
    for source in table["source"].to_pylist() if "source" in table.column_names else ():
        counts[source] = counts.get(source, 0) + 1
    return {
        "base": {name: manifest.get(name) for name in ("uri", "revision", "licence")}
        | {"weights_sha256": weights_hash(base)},
        "start_from": started_from(sft),
        "rows": {
            "train": dvc_hash(rows / "train.parquet"),
            "held_out": dvc_hash(rows / "held_out.parquet"),
            "sources": dict(sorted(counts.items())),
        },
        "sft": sft.model_dump(mode="json"),
        "quantization": quantization.model_dump(mode="json"),
        "versions": {name: installed(name) for name in libraries},
    }
