"""Counts what runs on the card that is not there, and answers where the code asks a tensor for its values."""

import ast
import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from stand_ins.live_bytes import LiveBytes
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
H100 = (750e12, 0.9 * 3.35e12, 45e12)  # 16-bit operations/s, bytes/s, float32 operations/s, as they are reached
ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "expand", "lift_fresh", "narrow",
    "permute", "reshape", "select", "set_", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind",
    "unsqueeze", "unfold", "view", "view_as",
}  # fmt: skip
GATHERS = {"index_select", "index", "embedding", "gather"}  # read what they write, and not the whole source
# torch.use_deterministic_algorithms: what raises on CUDA, as far as a decoder could meet it.
NON_DETERMINISTIC = {
    "cumsum", "histc", "kthvalue", "median", "put_", "scatter_reduce", "scatter_reduce_", "index_reduce",
    "_scaled_dot_product_attention_math_backward", "nll_loss2d_forward", "_ctc_loss_backward",
}  # fmt: skip


class Meter(LiveBytes):
    """Within it each operation on the card is counted; to be entered within a FakeTensorMode.

    `routing(rows, experts)` says how many of `rows` each expert gets; `documents` are the lengths of those in a
    packed row; `masked` that rows are padded or packed, so that transformers cannot do without a mask.
    """

    def __init__(self, routing: Callable[[int, int], list[int]], rates: tuple[float, float, float] = H100):
        super().__init__()
        self.routing, self.rates = routing, rates
        self.documents: list[int] = []
        self.masked = False
        self.clear()

    def clear(self) -> None:
        """Begins to count anew; what is alive stays."""
        self.calls: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()  # host synchronisations by the line that asks
        self.uploads: Counter[str] = Counter()
        self.filled = self.dequantized = 0
        self.not_deterministic: set[str] = set()
        self.peak = self.now

    def result(self) -> dict[str, Any]:
        """The sums, as plain numbers."""
        fill = self.filled / self.rates[1]
        return {
            "kernels": sum(self.calls.values()),
            "synchronisations": sum(self.waits.values()),
            "uploads": sum(self.uploads.values()),
            "tera_operations": round(sum(self.operations.values()) / 1e12, 6),
            "gigabytes": round(sum(self.bytes.values()) / 1e9, 6),
            "dequantized_gigabytes": round(self.dequantized / 1e9, 6),
            "filled_gigabytes": round(self.filled / 1e9, 6),
            "roofline_ms": round((sum(self.seconds.values()) + fill) * 1e3, 6),
            "peak_gib": round(self.peak / 2**30, 6),
            "not_deterministic": sorted(self.not_deterministic),
        }

    def table(self, most: int = 25) -> str:
        """Where the roofline's time goes."""
        lines = [f"{'operation':<44}{'calls':>7}{'TFLOP':>9}{'GB':>9}{'ms':>9}"]
        for name, seconds in self.seconds.most_common(most):
            lines.append(
                f"{name:<44}{self.calls[name]:>7}{self.operations[name] / 1e12:>9.2f}"
                f"{self.bytes[name] / 1e9:>9.1f}{seconds * 1e3:>9.2f}"
            )
        return "\n".join([*lines, f"waits {dict(self.waits)}", f"uploads {dict(self.uploads)}"])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:  # in inference mode these come whole
                return func.decompose(*args, **kwargs)
        name = func._overloadpacket.__name__
        result = self._answer(func, name, args, kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.count(leaf for leaf in tensors if leaf.is_cuda)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(leaf.is_cuda for leaf in [*given, *tensors]):
            self._measure(func, name, args, kwargs, given, tensors, result)
        return result

    def _answer(self, func, name: str, args: tuple, kwargs: dict) -> Any:
        # What depends on values. On a card each of these waits for it.
        if name in ("_to_copy", "copy_"):
            self._moved(name, args, kwargs)
        first = args[0] if args and isinstance(args[0], FakeTensor) else None
        if first is None:
            return NotImplemented
        if name == "_local_scalar_dense":
            self._wait(first)
            if self.masked and "masking_utils" in _where():
                return False
            return True if first.dtype == torch.bool else 1.0 if first.is_floating_point() else 1
        if name == "equal":
            self._wait(first)
            return True
        if name == "nonzero":
            self._wait(first)
            return first.new_empty((first.numel(), first.dim()), dtype=torch.long)
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self._wait(first)
            (mask,) = args[1]
            flat = first.reshape(-1, *first.shape[mask.dim() :])
            return flat.index_select(0, first.new_empty((mask.numel(),), dtype=torch.long))
        if name == "bincount":
            self._wait(first)  # looks at the smallest and the greatest value
            self._wait(first)
            found = first.new_empty((kwargs.get("minlength") or args[2],))
            found.known = self.routing(first.numel(), len(found))
            return found
        if name == "searchsorted":
            counts = self.routing(first.numel(), args[1].numel())
            found = func(*args, **kwargs)
            found.known = [sum(counts[: place + 1]) for place in range(len(counts))]
            return found
        return NotImplemented

    def _moved(self, name: str, args: tuple, kwargs: dict) -> None:
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else kwargs.get("device")
        kind = source.device.type if target is None else torch.device(target).type
        if source.is_cuda and kind == "cpu" and not kwargs.get("non_blocking"):
            self._wait(source)
        if not source.is_cuda and kind == "cuda":
            self.uploads[_where()] += 1

    def _wait(self, tensor: torch.Tensor) -> None:
        if tensor.is_cuda:
            self.waits[_where()] += 1

    def values_of(self, tensor: FakeTensor) -> list:
        """`tensor.tolist()`: one synchronisation."""
        self._wait(tensor)
        if (known := getattr(tensor, "known", None)) is not None:
            return known
        one = 1.0 if tensor.is_floating_point() else 1
        return _filled(tuple(tensor.shape), one)

    def _measure(self, func, name, args, kwargs, given, tensors, result) -> None:
        fill = torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
        written = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if name in ALLOCATIONS or func.namespace == "bitsandbytes":
            self.filled += written if fill else 0
        if name in ALLOCATIONS or name in VIEWS or func.namespace == "prim":
            return
        key = name if func.namespace == "aten" else f"{func.namespace}.{name}"
        operations = self._operations(func, name, args, kwargs, result)
        size = 2 * written if name in GATHERS else _touched([*given, *tensors])
        dense = written if name == "dequantize_4bit" else _dense_bytes(args) if name == "gemm_4bit" else 0
        if name == "gemm_4bit" and dense:  # scales, weights, product
            self.calls["bitsandbytes.gemm_4bit"] += 2
            size += 2 * dense
        self.dequantized += dense
        if name in NON_DETERMINISTIC and not (name == "cumsum" and not given[0].is_floating_point()):
            self.not_deterministic.add(name)
        peak, bandwidth, float32 = self.rates
        half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in given)
        self.calls[key] += 1
        self.operations[key] += operations
        self.bytes[key] += size
        self.seconds[key] += max(operations / (peak if half else float32), size / bandwidth)

    def _operations(self, func, name, args, kwargs, result) -> int:
        if name == "gemm_4bit":
            return 2 * args[0].numel() * args[2][0]
        if name == "_grouped_mm":
            return 2 * args[0].numel() * args[1].shape[-1]
        if name.startswith("_varlen_attn"):
            query = args[1] if name.endswith("backward") else args[0]
            pairs = sum(length**2 for length in self.documents)
            return (10 if name.endswith("backward") else 4) * pairs * query.shape[1] * query.shape[2]
        formula = flop_registry.get(func._overloadpacket)
        if name == "bmm":  # with a type of its own its formula takes too many
            args = args[:2]
        return formula(*args, **kwargs, out_val=result) if formula else 0


def _dense_bytes(args: tuple) -> int:
    # What gemm_4bit dequantises where bitsandbytes finds that faster than its kernel for 4 bits, on an H100.
    rows, (outputs, inputs) = args[0].numel() // args[0].shape[-1], args[2]
    fused = rows <= 1536 and _heuristic()(0, args[0].dtype, rows, outputs, inputs)
    return 0 if fused else outputs * inputs * args[0].element_size()


@functools.cache
def _heuristic() -> Callable[..., bool]:
    # bitsandbytes' own; its module cannot be imported where torch is built without CUDA.
    source = (Path(bitsandbytes.__file__).parent / "backends" / "cuda" / "ops.py").read_text(encoding="utf-8")
    name = "_gemm_4bit_use_custom_cuda"
    (found,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == name)
    known = {"functools": functools, "torch": torch, "_gpu_dispatch_props": lambda device: (132, 9, 0)}
    known["_GEMM_4BIT_CUSTOM_FLOOR_M"] = 4
    exec(compile(ast.Module([found], []), name, "exec"), known)
    return known[name]


def _is_composite(func) -> bool:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    if func.namespace == "prim" or has(func.name(), "CUDA"):
        return False
    return has(func.name(), "CompositeImplicitAutograd")


def _filled(shape: tuple[int, ...], value: float) -> Any:
    return [_filled(shape[1:], value) for _ in range(shape[0])] if shape else value


def _touched(tensors: list[torch.Tensor]) -> int:
    seen = {}
    for tensor in tensors:
        key = tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape)
        seen[key] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def _where() -> str:
    frame = sys._getframe(2)
    while frame.f_back and any(part in frame.f_code.co_filename for part in ("/torch/", "fake_cuda")):
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno}"


def balanced(rows: int, experts: int) -> list[int]:
    """Each expert's rows where all get the same."""
    return [rows // experts + (expert < rows % experts) for expert in range(experts)]


def skewed(rows: int, experts: int) -> list[int]:
    """Half of all rows to the fourth expert."""
    found = [(rows - rows // 2) // (experts - 1)] * experts
    found[3] = 0
    found[3] = rows - sum(found)
    return found
