"""How many parameters, bytes and bits a parameter a model folder holds, by part, without loading a weight."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.model.folder import group_of, meta_model, quantised_linears, read_config, read_headers
from aurora.model.quantization import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK, SCALE_BLOCK = 64, 256  # weights a scale, scales a scale of scales
TABLES = 4 * 16 + 4 * 256  # bytes of the two tables of values that bitsandbytes keeps with a matrix
ORDER = ("embeddings", "attention", "experts", "router", "norms", "head", "other")
WIDTH = {4: "compute_dtype", 16: "bfloat16", 32: "float32"}
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def packed_bytes(matrices: int, weights: int, double_quant: bool, fused: bool) -> int:
    """Bytes of `matrices` matrices of `weights` weights each in NF4, their scales and tables with them."""
    blocks = -(-weights // BLOCK)
    if double_quant:
        scales = blocks + 4 * -(-blocks // SCALE_BLOCK) + 4  # 8-bit scales, their own scales, their mean
        tables = 4 * 256 if fused else TABLES
    else:
        scales, tables = 4 * blocks, 0 if fused else 4 * 16
    return matrices * ((weights + 1) // 2 + scales) + tables


def planned_tensors(skeleton: "PreTrainedModel", quantization: Quantization) -> Iterator[tuple[str, int, int]]:
    """(name, parameters, bytes held in memory) of each tensor of a model that is not loaded yet."""
    from aurora.model.experts import fused_tensors

    width = BYTES[quantization.compute_dtype if quantization.bits == 4 else WIDTH[quantization.bits]]
    fused, linear = {name for name, _, _ in fused_tensors(skeleton)}, quantised_linears(skeleton)
    for name, tensor in skeleton.named_parameters():
        size = tensor.numel() * width
        if quantization.bits == 4 and name in fused:
            size = packed_bytes(len(tensor), prod(tensor.shape[1:]), quantization.double_quant, fused=True)
        elif quantization.bits == 4 and name in linear:
            size = packed_bytes(1, tensor.numel(), quantization.double_quant, fused=False)
        yield name, tensor.numel(), size


def held_bytes(skeleton: "PreTrainedModel", quantization: Quantization) -> int:
    """Bytes of all parameters once loaded."""
    return sum(size for _, _, size in planned_tensors(skeleton, quantization))


def largest_arrival(folder: Path, skeleton: "PreTrainedModel", quantization: Quantization) -> int:
    """Bytes of the largest tensor of the checkpoint before it is packed; nothing is held twice without packing."""
    from aurora.model.packing import arrive_one_by_one

    if quantization.bits != 4 or read_config(folder).get("quantization_config"):
        return 0
    if arrive_one_by_one(skeleton):
        largest = max(entry.count for entry in read_headers(folder).values())
    else:  # transformers fuses all experts first
        largest = max(tensor.numel() for tensor in skeleton.parameters())
    return largest * BYTES[quantization.compute_dtype]


def stored(folder: Path) -> dict[str, dict]:
    """Parameters and bytes by part as the files hold them: dense, or packed by this project."""
    packed = bool(read_config(folder).get("quantization_config"))
    groups: dict[str, dict] = {}
    for name, entry in read_headers(folder).items():
        group = groups.setdefault(group_of(name), {"parameters": 0, "bytes": 0})
        group["bytes"] += entry.bytes
        if packed and group_of(name) in ("attention", "experts"):
            # Two weights a byte; all else that comes with a packed matrix is scales.
            holds = name.endswith((".codes", ".weight")) and entry.dtype == "U8"
            group["parameters"] += 2 * entry.count if holds else 0
        else:
            group["parameters"] += entry.count
    return _finish(groups)


def planned(folder: Path, quantization: Quantization) -> dict[str, dict]:
    """Parameters and bytes by part as `load_model` would hold them in memory."""
    groups: dict[str, dict] = {}
    for name, count, size in planned_tensors(meta_model(folder), quantization):
        group = groups.setdefault(group_of(name), {"parameters": 0, "bytes": 0})
        group["parameters"] += count
        group["bytes"] += size
    return _finish(groups)


def _finish(groups: dict[str, dict]) -> dict[str, dict]:
    result = {name: groups[name] for name in ORDER if name in groups}
    result["total"] = {key: sum(group[key] for group in result.values()) for key in ("parameters", "bytes")}
    for group in result.values():
        group["bits_per_parameter"] = round(8 * group["bytes"] / max(1, group["parameters"]), 4)
    return result
