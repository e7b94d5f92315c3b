"""LoRA into a sharded safetensors checkpoint, one tensor at a time: W + (alpha / r) * B A, rounded once.

The base's sharding, names, dtype, index, configuration and tokeniser are kept, so that whatever loads the base
loads the merged folder. A shard without an adapted tensor is linked, not copied, where the file system allows.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from aurora.errors import ModelError, ResourceError
from aurora.store import read_json, replacing

INDEX = "model.safetensors.index.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# LoraConfig fields that change the arithmetic or the tensors; any other value than these is refused by name.
PLAIN = {
    "use_dora": (False,),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "layers_to_transform": (None,),
    "alora_invocation_tokens": (None,),
}


@dataclass(frozen=True)
class Delta:
    """What is added to one tensor of the base: scale * B @ A."""

    a: Callable  # () -> (r, in) tensor
    b: Callable  # () -> (out, r) tensor
    scale: float


def merge(base: Path, adapter: Path, out: Path) -> dict:
    """Writes `base` with `adapter` added as a Hugging Face folder and returns counts for the metrics.

    Sums in float32 and rounds once to the base's dtype; holds one tensor and its delta at a time, and the
    adapted tensors of one shard until it is written. Raises ModelError for an adapter or base that do not fit,
    ResourceError for a disk that is too small; then nothing is left behind.
    """
    shards = shards_of(base)
    deltas = read_deltas(adapter)
    unknown = sorted(set(deltas) - {name for names in shards.values() for name in names})
    if unknown:
        raise ModelError(f"{adapter}: {unknown[0]} is not a tensor of {base}; was the adapter trained on it?")
    changed = {shard for shard, names in shards.items() if any(name in deltas for name in names)}
    _check_disk(base, out, changed)
    linked = largest = 0
    with replacing(out) as partial:
        partial.mkdir()
        for shard in tqdm(sorted(shards), desc="merge", unit="shard"):
            if shard in changed:
                largest = max(largest, _merge_shard(base / shard, partial / shard, deltas))
            else:
                linked += _link_or_copy(base / shard, partial / shard)
        for path in sorted(base.iterdir()):
            if path.is_file() and path.name not in shards and path.name != "manifest.json":
                shutil.copyfile(path, partial / path.name)
    return {
        "shards": len(shards),
        "shards_changed": len(changed),
        "tensors": sum(len(names) for names in shards.values()),
        "tensors_changed": len(deltas),
        "largest_delta": largest,
    }


def shards_of(base: Path) -> dict[str, list[str]]:
    """Tensor names of each shard, from the shards' own headers.

    Raises ModelError for a missing or truncated shard and where index and shards disagree.
    """
    if (base / INDEX).is_file():
        index = read_json(base / INDEX, "fetch@base")
        files = sorted(set(index["weight_map"].values()))
    else:
        index, files = None, sorted(path.name for path in base.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{base}: no safetensors file; fetch it again: dvc repro -f fetch@base")
    shards = {}
    for file in files:
        if not (base / file).is_file():
            raise ModelError(f"{base}/{file}: missing, though {INDEX} names it; fetch the base again")
        try:
            with safe_open(base / file, "pt") as tensors:
                shards[file] = list(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{base}/{file}: truncated or damaged ({error}); fetch the base again") from None
    if index is not None:
        held = {name: file for file, names in shards.items() for name in names}
        for name, file in index["weight_map"].items():
            if held.get(name) != file:
                raise ModelError(f"{base}/{INDEX}: {name} is not in {file}; fetch the base again")
    return shards


def read_deltas(adapter: Path) -> dict[str, Delta]:
    """The delta of each adapted tensor by its name in the base.

    Honours r, lora_alpha, rsLoRA and the rank and alpha patterns; raises ModelError for anything else that
    changes the sum, and for a tensor of the adapter that is no LoRA A or B.
    """
    config = read_json(adapter / "adapter_config.json", "sft")
    for field, plain in PLAIN.items():
        if config.get(field) not in plain and config.get(field, plain[0]) not in plain:
            raise ModelError(f"{adapter}: {field}={config[field]} cannot be merged; train without it")
    path = adapter / WEIGHTS
    if config.get("peft_type") != "LORA" or not path.is_file():
        raise ModelError(f"{adapter}: no LoRA adapter with {WEIGHTS}; it is written by: dvc repro sft")
    with safe_open(path, "pt") as tensors:
        names = list(tensors.keys())
    pairs: dict[str, dict[str, str]] = {}
    for name in names:
        module, found, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if not found or part not in ("A.weight", "B.weight"):
            raise ModelError(f"{adapter}: {name} is not a LoRA A or B; it would be lost in a merge")
        pairs.setdefault(module, {})[part[0]] = name
    deltas = {}
    for module, parts in pairs.items():
        if set(parts) != {"A", "B"}:
            raise ModelError(
                f"{adapter}: {module} has only LoRA {''.join(parts)}; the file is damaged: train again"
            )
        rank = _pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        deltas[f"{module}.weight"] = Delta(_reader(path, parts["A"]), _reader(path, parts["B"]), scale)
    return deltas


def _reader(path: Path, name: str) -> Callable:
    def read():
        with safe_open(path, "pt") as tensors:
            return tensors.get_tensor(name)

    return read


def _pattern(patterns: dict | None, module: str, default: float) -> float:
    from peft.utils.other import get_pattern_key

    key = get_pattern_key((patterns or {}).keys(), module)
    return (patterns or {}).get(key, default)


def _merge_shard(source: Path, target: Path, deltas: dict[str, Delta]) -> float:
    """Writes one shard with its deltas added; returns the largest absolute element of a delta."""
    import torch

    largest, merged = 0.0, {}
    with safe_open(source, "pt") as tensors:
        metadata = tensors.metadata()
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            weight = tensors.get_tensor(name)
            if name in deltas:
                delta = deltas[name]
                a, b = delta.a().float(), delta.b().float()
                if (b.shape[0], a.shape[1]) != tuple(weight.shape):
                    raise ModelError(
                        f"{name}: the adapter adds {b.shape[0]} x {a.shape[1]} to {tuple(weight.shape)}; "
                        "it was trained on another base"
                    )
                update = (b @ a) * delta.scale
                if not torch.isfinite(update).all():
                    raise ModelError(
                        f"{name}: the adapter's delta is not finite; train again with a lower rate"
                    )
                largest = max(largest, update.abs().max().item())
                weight = (weight.float() + update).to(weight.dtype)
            merged[name] = weight
        save_file(merged, target, metadata=metadata)
    return largest


def _link_or_copy(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True


def _check_disk(base: Path, out: Path, changed: set[str]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = sum((base / shard).stat().st_size for shard in changed)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise ResourceError(
            f"{out}: needs {needed / 2**30:.1f} GiB but the disk has {free / 2**30:.1f} GiB free; make room first"
        )
