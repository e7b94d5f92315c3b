"""A fused expert tensor in NF4: packed expert by expert, exactly as bitsandbytes packs a Linear4bit."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

# As it is imported, bitsandbytes hands functions to torch.compile that no kernel of CPU or CUDA calls, and torch loads
# its compilers for them, which takes a second in each stage.
with patch.object(torch, "compile", lambda function=None, **_: function or (lambda given: given)):
    from bitsandbytes import functional as bnb

FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # what bitsandbytes packs
BLOCK = 64  # weights that share one scale (QLoRA, arXiv 2305.14314, section 3)
SCALE_BLOCK = 256  # scales that share one scale of their own, with double quantisation
SLICE = 2**20  # weights packed at a time on a CPU, where bitsandbytes needs some 20 bytes for each


def _has_avx512() -> bool:
    try:
        return " avx512bw" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


# bitsandbytes' kernel for CPUs is fast with AVX-512 and slower than a table without; both give the same bits.
KERNEL_ON_CPU = _has_avx512()


def fits_nf4(shape: tuple[int, ...]) -> bool:
    """Whether a fused tensor of this shape can be packed expert by expert."""
    return len(shape) == 3 and not ((shape[1] * shape[2]) % BLOCK or shape[2] % 2)


class PackedExperts(nn.Module):
    """One fused tensor (experts, rows, columns) in NF4.

    All tensors are parameters without gradient, not buffers: DistributedDataParallel would broadcast buffers,
    22 GiB of them, at every step.
    """

    def __init__(
        self, shape: tuple[int, int, int], double_quant: bool, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """An empty store for `shape`; `dtype` is what the experts compute in. Raises ValueError for other shapes."""
        super().__init__()
        if not fits_nf4(shape):
            raise ValueError(f"NF4 takes (experts, rows, columns) of {BLOCK}n weights an expert, not {shape}")
        self.shape, self.double_quant, self.dtype = torch.Size(shape), double_quant, dtype
        blocks = shape[1] * shape[2] // BLOCK

        def empty(*size: int, dtype: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)

        self.codes = empty(shape[0], shape[1], shape[2] // 2, dtype=torch.uint8)
        self.scales = empty(shape[0], blocks, dtype=torch.uint8 if double_quant else torch.float32)
        if double_quant:
            self.outer_scales = empty(shape[0], -(-blocks // SCALE_BLOCK), dtype=torch.float32)
            self.offsets = empty(shape[0], dtype=torch.float32)
            self.scale_values = empty(256, dtype=torch.float32)  # values of the 8-bit scales

    @classmethod
    def of(cls, weight: torch.Tensor, double_quant: bool, dtype: torch.dtype | None = None) -> "PackedExperts":
        """Packs a dense fused tensor (experts, rows, columns)."""
        packed = cls(tuple(weight.shape), double_quant, dtype or weight.dtype, weight.device)
        for expert, matrix in enumerate(weight.detach()):
            packed.put(expert, [matrix])
        return packed

    @torch.no_grad()
    def put(self, expert: int, parts: Iterable[torch.Tensor]) -> None:
        """Packs one expert's matrix (rows, columns), which comes in parts from top to bottom, each needed once.

        Raises ValueError for another shape or dtype.
        """
        codes, at = self.codes[expert].view(-1), 0
        scales = torch.empty(self.scales.shape[1], dtype=torch.float32, device=self.scales.device)
        for piece in self._pieces(expert, parts):
            packed, own = torch.ops.bitsandbytes.quantize_4bit.default(piece, BLOCK, "nf4", torch.uint8)
            codes[at // 2 : (at + piece.numel()) // 2] = packed.view(-1)
            scales[at // BLOCK : (at + piece.numel()) // BLOCK] = own
            at += piece.numel()
            del piece, packed, own  # a part is freed before the next one is read
        if not self.double_quant:
            self.scales[expert] = scales
            return
        self.offsets[expert] = scales.mean()
        quantised, state = bnb.quantize_blockwise(scales - self.offsets[expert], blocksize=SCALE_BLOCK)
        self.scales[expert], self.outer_scales[expert] = quantised, state.absmax
        self.scale_values.copy_(state.code)

    def _pieces(self, expert: int, parts: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        # Flat, each of whole blocks; a part that ends within a block waits for the next one.
        rows, rest = 0, None
        for part in parts:
            if part.dim() != 2 or part.shape[1] != self.shape[2] or rows + len(part) > self.shape[1]:
                raise ValueError(f"expert {expert} has {tuple(part.shape)}, not {tuple(self.shape[1:])}")
            if part.dtype not in FLOATS:
                raise ValueError(f"expert {expert} is {part.dtype}, which NF4 cannot hold")
            rows += len(part)
            flat = part.contiguous().view(-1)
            if rest is not None:
                flat, rest = torch.cat([rest, flat]), None
            if over := flat.numel() % BLOCK:
                flat, rest = flat[:-over], flat[-over:]
            step = max(1, flat.numel()) if flat.is_cuda else SLICE
            for start in range(0, flat.numel(), step):
                yield flat[start : start + step]
            del part, flat
        if rows != self.shape[1]:
            raise ValueError(f"expert {expert} has {rows} rows, not {self.shape[1]}")

    def dense(self, expert: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The dequantised matrix of one expert, (rows, columns)."""
        return self.dense_of([expert], dtype)[0]

    @torch.no_grad()
    def dense_of(self, experts: list[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The dequantised matrices of some experts, in ascending order: (len(experts), rows, columns)."""
        picked = pick(experts)
        dense = dequantise(self.codes[picked], self._scales(picked), dtype or self.dtype)
        return dense.view(len(experts), *self.shape[1:])

    @torch.no_grad()
    def slabs(self, expert: int, dtype: torch.dtype, most: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """One expert's matrix dequantised in slabs of at most `most` weights: (first row, last row + 1, weights)."""
        rows, columns = self.shape[1:]
        step = max(1, most // columns)
        if columns % BLOCK:
            step = max(BLOCK, step // BLOCK * BLOCK)
        scales = self._scales(slice(expert, expert + 1)).view(-1)
        for first in range(0, rows, step):
            last = min(rows, first + step)
            part = scales[first * columns // BLOCK : last * columns // BLOCK]
            yield first, last, dequantise(self.codes[expert, first:last], part, dtype).view(-1, columns)

    def _scales(self, pick: slice | list[int]) -> torch.Tensor:
        # float32 (experts, blocks)
        scales = self.scales[pick]
        if not self.double_quant:
            return scales
        outer, offsets = self.outer_scales[pick], self.offsets[pick].unsqueeze(1)
        if scales.shape[1] % SCALE_BLOCK == 0:
            kernel = torch.ops.bitsandbytes.dequantize_blockwise.default
            flat = scales.reshape(-1), outer.reshape(-1), self.scale_values
            return kernel(*flat, SCALE_BLOCK, torch.float32).view(scales.shape).add_(offsets)
        values = self.scale_values.index_select(0, scales.reshape(-1).int()).view(scales.shape)
        return values.mul_(outer.repeat_interleave(SCALE_BLOCK, dim=1)[:, : scales.shape[1]]).add_(offsets)

    def fused_product(self, expert: int, rows: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """rows (n, columns) times one expert's transposed matrix, by bitsandbytes' kernel for few rows, plus `bias`."""
        first = (self.codes[expert].view(-1, 1), self.shape[1:])
        kernel = torch.ops.bitsandbytes.gemm_4bit.default
        if not self.double_quant:
            return kernel(rows, *first, self.scales[expert], BLOCK, "nf4", bias)
        nested = {"absmax_8bit": self.scales[expert], "absmax_code": self.scale_values}
        offset = self.offsets[expert]
        return kernel(rows, *first, self.outer_scales[expert], BLOCK, "nf4", bias, **nested, absmax_offset=offset)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, nf4, double_quant={self.double_quant}, dtype={self.dtype}"


def dequantise(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Packed weights (two a byte, any shape) and their float32 scales to weights, flat."""
    if codes.is_cuda or KERNEL_ON_CPU:
        shape = (codes.numel() * 2 // BLOCK, BLOCK)
        kernel = torch.ops.bitsandbytes.dequantize_4bit.default
        return kernel(codes.reshape(-1, 1), scales.reshape(-1), BLOCK, "nf4", shape, dtype).view(-1)
    # The same products as the kernel's, two weights a look-up.
    values = _pairs().index_select(0, codes.reshape(-1).int()).view(torch.float32)
    return values.view(-1, BLOCK).mul_(scales.reshape(-1, 1)).view(-1).to(dtype)


@cache
def _pairs() -> torch.Tensor:
    """The two weights of each byte, high half first, as one 8-byte value: (256,)."""
    values, byte = bnb.get_4bit_type("nf4", device="cpu"), torch.arange(256)
    return torch.stack([values[byte >> 4], values[byte & 15]], dim=1).view(torch.float64).view(-1)


def pick(experts: list[int]) -> slice | list[int]:
    """What indexes a tensor by experts: neighbours give a view; others have to be copied."""
    first, last = experts[0], experts[-1]
    return slice(first, last + 1) if last - first + 1 == len(experts) else experts
