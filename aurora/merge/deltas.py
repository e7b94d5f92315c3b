"""A PEFT LoRA folder as changes of named tensors; whatever else an adapter can hold is refused by name."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.adapter.config import ending, read_adapter_config
from aurora.core.errors import ModelError
from aurora.lora.targets import PREFIX, Target, find_targets
from aurora.merge.shards import FLOATS, read_tensor
from aurora.model.folder import Piece, TensorInfo, meta_model, read_headers, read_tensor_infos, verify

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
# LoraConfig fields that a merge reads, and those that say nothing of the sum: how training went, where it applied.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"}
READ |= {"target_parameters", "modules_to_save"}
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
PARTS = {"A.weight": "A", "B.weight": "B", "magnitude_vector": "M", "magnitude_vector.weight": "M"}
REMEDY = "train again: dvc repro -f sft"


@dataclass(frozen=True)
class Delta:
    """What is added to one matrix of the base: scale * B @ A; with a magnitude each row then gets that length."""

    a: Callable[[], "torch.Tensor"]  # () -> (r, in), float32
    b: Callable[[], "torch.Tensor"]  # () -> (out, r), float32
    scale: float
    shape: tuple[int, ...]  # of the base's matrix: (out, in), or (in, out) if `transposed`
    transposed: bool = False
    magnitude: Callable[[], "torch.Tensor"] | None = None  # () -> (out,), DoRA (arXiv 2402.09353)


@dataclass(frozen=True)
class FusedDelta:
    """What is added to a tensor that holds all experts of a layer: a delta for each, made one at a time."""

    experts: list[Delta]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Replacement:
    """A tensor that was trained whole and takes the place of the base's."""

    tensor: Callable[[], "torch.Tensor"]
    shape: tuple[int, ...]


Change = Delta | FusedDelta | Replacement


class AdapterFile:
    """The tensors of an adapter, read when they are asked for; the last few are kept, since experts share them."""

    def __init__(self, path: Path) -> None:
        self.path, self.infos = path, read_tensor_infos(path, REMEDY)
        self._kept: dict[str, torch.Tensor] = {}

    def read(self, name: str) -> "torch.Tensor":
        """One tensor in float32."""
        if name not in self._kept:
            if len(self._kept) >= 4:
                self._kept.pop(next(iter(self._kept)))
            with self.path.open("rb", 0) as file:
                self._kept[name] = read_tensor(file, self.infos[name]).float()
        return self._kept[name]


def read_deltas(adapter: Path, base: Path | None = None) -> dict[str, Change]:
    """The change of each adapted tensor by its name in the base's files.

    Without `base` tensors are named as in the model, and experts are refused. Honours r, lora_alpha, rsLoRA, DoRA, the
    rank and alpha patterns, target_parameters and modules_to_save; raises ModelError for anything else that changes the
    sum, for a tensor of the adapter that is none of these, and for one that is named twice, and DataError for a
    configuration that is none.
    """
    config = read_adapter_config(adapter)
    path = adapter / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{adapter}: no LoRA adapter with {WEIGHTS}; it is written by: dvc repro sft")
    for field, value in config.items():
        plain = PLAIN.get(field, (None, False, [], {}, ""))
        if field not in READ | NEUTRAL and value not in plain:
            raise ModelError(f"{adapter}: {field}={value} cannot be merged; train without it")
    file = AdapterFile(path)
    pairs, whole = _pairs(adapter, file.infos, config.get("modules_to_save") or ())
    changes: dict[str, Change] = {
        name: Replacement(partial(file.read, key), file.infos[key].shape) for name, key in whole.items()
    }
    parameters, pieces = _parameters(adapter, base, config)
    for module, parts in pairs.items():
        target = parameters.get(module)
        rank = int(_pattern(config.get("rank_pattern"), module, config["r"])) if target is None else target.r
        experts = 1 if target is None else target.experts or 1
        _check_pair(adapter, module, file.infos[parts["A"]], file.infos[parts["B"]], rank * experts)
        if target is None:
            alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
            scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
            changes[f"{module}.weight"] = _matrix(file, parts, scale)
        elif target.experts is None:
            changes[target.name] = _matrix(file, parts, target.scale)
        else:
            changes |= _expert_changes(file, parts, target, pieces[target.name])
    if not changes:
        raise ModelError(f"{adapter}: {WEIGHTS} holds no tensor; {REMEDY}")
    return _as_in_files(changes, base, pieces)


def _parameters(adapter: Path, base: Path | None, config: dict) -> tuple[dict[str, Target], dict[str, list[Piece]]]:
    """Targets that are parameters by their keys in the adapter, and how the base's files hold the model's tensors."""
    if not config.get("target_parameters"):
        return {}, {}
    if base is None:
        raise ModelError(f"{adapter}: target_parameters={config['target_parameters']} need the base")
    from peft import LoraConfig

    skeleton = meta_model(base)
    found = find_targets(skeleton, LoraConfig.from_pretrained(adapter), str(adapter)).found
    parameters = {target.key.removeprefix(PREFIX): target for target in found if target.is_parameter}
    return parameters, verify(base, skeleton, packing=False)


def _as_in_files(changes: dict[str, Change], base: Path | None, pieces: dict[str, list[Piece]]) -> dict[str, Change]:
    """The changes by the names of the base's files, where transformers renames its tensors as it loads them."""
    if base is None or not (base / "config.json").is_file():
        return changes
    there = read_headers(base)
    if all(name in there for name in changes):
        return changes
    pieces = pieces or verify(base, meta_model(base), packing=False)
    names = {name: found[0].name for name, found in pieces.items() if len(found) == 1}
    return {name if name in there else names.get(name, name): change for name, change in changes.items()}


def _matrix(file: AdapterFile, parts: dict[str, str], scale: float) -> Delta:
    a, b = parts["A"], parts["B"]
    magnitude = partial(file.read, parts["M"]) if "M" in parts else None
    shape = (file.infos[b].shape[0], file.infos[a].shape[1])
    return Delta(partial(file.read, a), partial(file.read, b), scale, shape, magnitude=magnitude)


def _expert_changes(file: AdapterFile, parts: dict[str, str], target: Target, pieces: list[Piece]) -> dict[str, Change]:
    # PEFT: A is (experts x r, in), expert by expert; B is (out, r x experts), rank by rank.
    count = target.experts or 1

    def delta(expert: int, first: int, shape: tuple[int, ...]) -> Delta:
        rows = slice(first, first + shape[0])

        def a() -> "torch.Tensor":
            return file.read(parts["A"]).unflatten(0, (count, target.r))[expert]

        def b() -> "torch.Tensor":
            part = file.read(parts["B"]).unflatten(1, (target.r, count))[:, :, expert]
            return part if target.transposed else part[rows]

        return Delta(a, b, target.scale, shape, target.transposed)

    changes: dict[str, Change] = {}
    for piece in pieces:
        shape = piece.info.shape
        if piece.expert is None:
            each = [delta(expert, 0, shape[1:]) for expert in range(count or 0)]
            changes[piece.name] = FusedDelta(each, shape)
        else:
            changes[piece.name] = delta(piece.expert, piece.first_row, shape)
    return changes


def _check_pair(adapter: Path, module: str, a: TensorInfo, b: TensorInfo, rank: int) -> None:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise ModelError(f"{adapter}: {module} has A {a.shape} and B {b.shape}, not of rank {rank}; {REMEDY}")
    if a.dtype not in FLOATS or b.dtype not in FLOATS:
        raise ModelError(f"{adapter}: {module} has A in {a.dtype} and B in {b.dtype}; {REMEDY}")


def adapter_keys(adapter: Path) -> set[str]:
    """The names in an adapter's file of all that has an A and a B, and of modules that were trained whole."""
    config = read_adapter_config(adapter)
    infos = read_tensor_infos(adapter / WEIGHTS, REMEDY)
    pairs, whole = _pairs(adapter, infos, config.get("modules_to_save") or ())
    return {*pairs, *(name.rpartition(".")[0] for name in whole)}


def _pairs(
    adapter: Path, infos: dict[str, TensorInfo], trained_whole: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Names of A, B and magnitude (M) of each module, and of the tensors that were trained whole."""
    pairs: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in infos:
        module, found, part = name.removeprefix(PREFIX).rpartition(".lora_")
        key = PARTS.get(part) if found else None
        if key is None:
            plain = name.removeprefix(PREFIX)
            if not found and any(parent in plain.split(".") for parent in trained_whole):
                whole[plain] = name
                continue
            raise ModelError(f"{adapter}: {name} is not a LoRA A or B; it would be lost in a merge")
        known = pairs.setdefault(module, {})
        if key in known:
            raise ModelError(f"{adapter}: {known[key]} and {name} are the same tensor named twice; {REMEDY}")
        known[key] = name
    for module, parts in pairs.items():
        if not {"A", "B"} <= set(parts):
            raise ModelError(f"{adapter}: {module} has only LoRA {''.join(parts)}; {REMEDY}")
    return pairs, whole


def _pattern(patterns: dict | None, module: str, default: float) -> float:
    """The value of the first pattern that the module's name ends in, as PEFT chooses it."""
    for pattern, value in (patterns or {}).items():
        if re.match(ending(pattern), module):
            return value
    return default
