"""A PEFT LoRA folder as deltas of named tensors; whatever else an adapter can hold is refused by name."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.adapter.config import ending, read_adapter_config
from aurora.core.errors import ModelError
from aurora.merge.shards import FLOATS, read_tensor
from aurora.model.folder import TensorInfo, read_tensor_infos

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# LoraConfig fields that a merge reads, and those that say nothing of the sum: how training went, where it applied.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
# Of init_lora_weights the others (pissa, olora, corda, loftq, lora_ga) train beside a changed base.
PLAIN = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal")}
REMEDY = "train again: dvc repro -f sft"


@dataclass(frozen=True)
class Delta:
    """What is added to one tensor of the base: scale * B @ A."""

    a: Callable[[], "torch.Tensor"]  # () -> (r, in), float32
    b: Callable[[], "torch.Tensor"]  # () -> (out, r), float32
    scale: float
    shape: tuple[int, int]  # (out, in)


def read_deltas(adapter: Path) -> dict[str, Delta]:
    """The delta of each adapted tensor by its name in the base.

    Honours r, lora_alpha, rsLoRA and the rank and alpha patterns; raises ModelError for anything else that
    changes the sum, for a tensor of the adapter that is no LoRA A or B, and for one that is named twice, and
    DataError for a configuration that is none.
    """
    config = read_adapter_config(adapter)
    path = adapter / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{adapter}: no LoRA adapter with {WEIGHTS}; it is written by: dvc repro sft")
    for field, value in config.items():
        plain = PLAIN.get(field, (None, False, [], {}, ""))
        if field not in READ | NEUTRAL and value not in plain:
            raise ModelError(f"{adapter}: {field}={value} cannot be merged; train without it")
    places = read_tensor_infos(path, REMEDY)
    deltas = {}
    for module, parts in _pairs(adapter, places).items():
        a, b = places[parts["A"]], places[parts["B"]]
        rank = _pattern(config.get("rank_pattern"), module, config["r"])
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise ModelError(
                f"{adapter}: {module} has A {a.shape} and B {b.shape}, not of rank {rank}; {REMEDY}"
            )
        if a.dtype not in FLOATS or b.dtype not in FLOATS:
            raise ModelError(f"{adapter}: {module} has A in {a.dtype} and B in {b.dtype}; {REMEDY}")
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        deltas[f"{module}.weight"] = Delta(
            _reader(path, a), _reader(path, b), scale, (b.shape[0], a.shape[1])
        )
    if not deltas:
        raise ModelError(f"{adapter}: {WEIGHTS} holds no tensor; {REMEDY}")
    return deltas


def _pairs(adapter: Path, places: dict[str, TensorInfo]) -> dict[str, dict[str, str]]:
    """Names of A and B of each module."""
    pairs: dict[str, dict[str, str]] = {}
    for name in places:
        module, found, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if not found or part not in ("A.weight", "B.weight"):
            raise ModelError(f"{adapter}: {name} is not a LoRA A or B; it would be lost in a merge")
        known = pairs.setdefault(module, {})
        if part[0] in known:
            raise ModelError(
                f"{adapter}: {known[part[0]]} and {name} are the same tensor named twice; {REMEDY}"
            )
        known[part[0]] = name
    for module, parts in pairs.items():
        if set(parts) != {"A", "B"}:
            raise ModelError(f"{adapter}: {module} has only LoRA {''.join(parts)}; {REMEDY}")
    return pairs


def _reader(path: Path, place: TensorInfo) -> Callable[[], "torch.Tensor"]:
    def read():
        with path.open("rb", 0) as file:
            return read_tensor(file, place).float()

    return read


def _pattern(patterns: dict | None, module: str, default: float) -> float:
    """The value of the first pattern that the module's name ends in, as PEFT chooses it."""
    for pattern, value in (patterns or {}).items():
        if re.match(ending(pattern), module):
            return value
    return default
