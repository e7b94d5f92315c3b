"""NF4 experts for any transformers-5 mixture of experts whose experts are fused 3-D tensors.

transformers 5 holds the experts of a layer as two parameters, `gate_up_proj` (experts, 2 x intermediate, hidden)
and `down_proj` (experts, hidden, intermediate), which bitsandbytes does not see: asked for 4 bits it leaves them
in bfloat16 without a word. Here they are packed, expert by expert, exactly as bitsandbytes packs a Linear4bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from bitsandbytes import functional as bnb
from torch import nn

IMPLEMENTATION = "aurora_nf4"  # name in transformers' experts interface
FUSED = ("gate_up_proj", "up_proj", "down_proj")  # names of fused tensors in transformers' experts modules
FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # what bitsandbytes packs
BLOCK = 64  # weights that share one scale (QLoRA, arXiv 2305.14314, section 3)
SCALE_BLOCK = 256  # scales that share one scale of their own, with double quantisation
AT_ONCE = 64 * 2**20  # bytes of dense weights that may exist at a time; one expert always may
LOOKUP = 2**22  # weights below which a table beats bitsandbytes' kernel on a CPU
FEW = 32  # rows below which bitsandbytes' fused kernel may beat dequantising, on a card


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
        if len(shape) != 3 or (shape[1] * shape[2]) % BLOCK or shape[2] % 2:
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
            self.scale_values = empty(256, dtype=torch.float32)  # what the 8-bit scales stand for

    @classmethod
    def of(
        cls, weight: torch.Tensor, double_quant: bool, dtype: torch.dtype | None = None
    ) -> "PackedExperts":
        """Packs a dense fused tensor (experts, rows, columns)."""
        packed = cls(tuple(weight.shape), double_quant, dtype or weight.dtype, weight.device)
        for expert, matrix in enumerate(weight.detach()):
            packed.put(expert, matrix)
        return packed

    @torch.no_grad()
    def put(self, expert: int, matrix: torch.Tensor) -> None:
        """Packs one expert's matrix (rows, columns). Raises ValueError for another shape or dtype."""
        if matrix.shape != self.shape[1:]:
            raise ValueError(f"expert {expert} is {tuple(matrix.shape)}, not {tuple(self.shape[1:])}")
        if matrix.dtype not in FLOATS:
            raise ValueError(f"expert {expert} is {matrix.dtype}, which NF4 cannot hold")
        codes, state = bnb.quantize_4bit(
            matrix.contiguous(), blocksize=BLOCK, compress_statistics=self.double_quant, quant_type="nf4"
        )
        self.codes[expert] = codes.view(self.codes.shape[1:])
        self.scales[expert] = state.absmax
        if self.double_quant:
            self.outer_scales[expert] = state.state2.absmax
            self.offsets[expert] = state.offset
            self.scale_values.copy_(state.state2.code)

    def dense(self, expert: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The dequantised matrix of one expert, (rows, columns)."""
        return self.dense_of([expert], dtype)[0]

    @torch.no_grad()
    def dense_of(self, experts: list[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The dequantised matrices of some experts, in ascending order: (len(experts), rows, columns)."""
        pick = _pick(experts)
        codes, scales = self.codes[pick], self._scales(pick)
        shape, dtype = (len(experts), *self.shape[1:]), dtype or self.dtype
        if codes.is_cuda or codes.numel() * 2 > LOOKUP:
            flat = (shape[0] * shape[1], shape[2])
            kernel = torch.ops.bitsandbytes.dequantize_4bit.default
            return kernel(codes.reshape(-1, 1), scales.view(-1), BLOCK, "nf4", flat, dtype).view(shape)
        # The same products as the kernel's, two weights a look-up.
        values = _pairs().index_select(0, codes.view(-1).int()).view(torch.float32)
        return values.view(-1, BLOCK).mul_(scales.view(-1, 1)).view(shape).to(dtype)

    def _scales(self, pick: slice | list[int]) -> torch.Tensor:
        # float32 (experts, blocks)
        scales = self.scales[pick]
        if not self.double_quant:
            return scales
        values = self.scale_values.index_select(0, scales.reshape(-1).int()).view(scales.shape)
        outer = self.outer_scales[pick].repeat_interleave(SCALE_BLOCK, dim=1)[:, : scales.shape[1]]
        return values.mul_(outer).add_(self.offsets[pick].unsqueeze(1))

    def fused_product(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """rows (n, columns) times one expert's transposed matrix, by bitsandbytes' kernel for few rows."""
        first = (self.codes[expert].view(-1, 1), self.shape[1:])
        kernel = torch.ops.bitsandbytes.gemm_4bit.default
        if not self.double_quant:
            return kernel(rows, *first, self.scales[expert], BLOCK, "nf4")
        nested = {"absmax_8bit": self.scales[expert], "absmax_code": self.scale_values}
        offset = self.offsets[expert]
        return kernel(rows, *first, self.outer_scales[expert], BLOCK, "nf4", **nested, absmax_offset=offset)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, nf4, double_quant={self.double_quant}, dtype={self.dtype}"


@cache
def _pairs() -> torch.Tensor:
    """The two weights of each byte, high half first, as one 8-byte value: (256,)."""
    values, byte = bnb.get_4bit_type("nf4", device="cpu"), torch.arange(256)
    return torch.stack([values[byte >> 4], values[byte & 15]], dim=1).view(torch.float64).view(-1)


def _pick(experts: list[int]) -> slice | list[int]:
    # Neighbours are a view; others have to be copied, packed.
    first, last = experts[0], experts[-1]
    return slice(first, last + 1) if last - first + 1 == len(experts) else experts


def multiply(packed: PackedExperts, rows: torch.Tensor, counts: list[int], turned: bool) -> torch.Tensor:
    """Rows (n, inputs), sorted by expert with counts[e] rows each, times each expert's matrix or its transpose.

    Experts without rows are never dequantised; the others in groups of at most AT_ONCE dense bytes, which exist
    while they are used.
    """
    matrix = packed.shape[1] * packed.shape[2] * rows.element_size()
    routed = [expert for expert, count in enumerate(counts) if count]
    size = max(1, AT_ONCE // matrix)
    result = rows.new_empty(len(rows), packed.shape[1 if turned else 2])
    start = 0
    for at in range(0, len(routed), size):
        group = routed[at : at + size]
        ends = list(accumulate(counts[expert] for expert in group))
        part = slice(start, start + ends[-1])
        dense = packed.dense_of(group, rows.dtype)
        _group_product(rows[part], dense.transpose(1, 2) if turned else dense, ends, result[part])
        start = part.stop
    return result


def _group_product(rows: torch.Tensor, dense: torch.Tensor, ends: list[int], out: torch.Tensor) -> None:
    # grouped_mm wants 16-byte rows, and on a card bfloat16.
    dtypes = (torch.bfloat16,) if rows.is_cuda else (torch.bfloat16, torch.float32)
    aligned = all(size * rows.element_size() % 16 == 0 for size in dense.shape[1:])
    if len(ends) > 1 and rows.dtype in dtypes and aligned:
        offsets = torch.tensor(ends, dtype=torch.int32, device=rows.device)
        out.copy_(nn.functional.grouped_mm(rows, dense, offs=offsets))
        return
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        torch.mm(rows[start:end], dense[expert], out=out[start:end])


def multiply_few(packed: PackedExperts, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """As `multiply` turned, without any dense weight where the card has a kernel for so few rows."""
    parts = rows.split([count for count in counts if count])
    routed = [expert for expert, count in enumerate(counts) if count]
    return torch.cat([packed.fused_product(*pair) for pair in zip(routed, parts, strict=True)])


class _PackedProduct(torch.autograd.Function):
    """Keeps the packed weights alone for backward; dense ones exist one group at a time, and not in between."""

    @staticmethod
    def forward(
        ctx, rows: torch.Tensor, packed: PackedExperts, counts: list[int], turned: bool
    ) -> torch.Tensor:
        ctx.packed, ctx.counts, ctx.turned = packed, counts, turned
        with torch.autocast(rows.device.type, enabled=False):
            if rows.is_cuda and turned and len(rows) <= FEW:
                return multiply_few(packed, rows, counts)
            return multiply(packed, rows, counts, turned)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        with torch.autocast(gradient.device.type, enabled=False):
            return multiply(ctx.packed, gradient.contiguous(), ctx.counts, not ctx.turned), None, None, None


class _Spread(torch.autograd.Function):
    """Each token's row once for each of its experts, in the order of `order`: (tokens, h) to (tokens * k, h).

    Backward gathers and sums, in a fixed order, where indexing would add atomically.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, order: torch.Tensor, back: torch.Tensor, top_k: int) -> torch.Tensor:
        ctx.top_k = top_k
        ctx.save_for_backward(back)
        return rows.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        (back,) = ctx.saved_tensors
        sorted_back = gradient.index_select(0, back)
        return sorted_back.view(-1, ctx.top_k, gradient.shape[1]).sum(dim=1), None, None, None


class _Hold(torch.autograd.Function):
    """Keeps each row and its routing weight for `_DownAndSum`, whose backward hands the unweighted gradient here.

    Gradient checkpointing recomputes a layer up to the last tensor that was saved. This is it, so that the product
    with down_proj, a third of the work, is never computed again: its result is not needed for any gradient.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weights)
        return rows.view_as(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        rows, weights = ctx.saved_tensors
        # With y = W a and the output w y: d/dw = g . W a = (W' g) . a, and d/da = w W' g.
        d_weights = (gradient.float() * rows.float()).sum(dim=1).to(weights.dtype)
        return (gradient * weights.unsqueeze(1)).to(rows.dtype), d_weights


class _DownAndSum(torch.autograd.Function):
    """Rows (tokens * k, inner) through down_proj, weighted and summed over k: (tokens, hidden)."""

    @staticmethod
    def forward(ctx, rows, top_k_weights, packed, routes: "_Routes", turned: bool) -> torch.Tensor:
        ctx.packed, ctx.routes, ctx.turned = packed, routes, turned
        with torch.autocast(rows.device.type, enabled=False):
            if rows.is_cuda and turned and len(rows) <= FEW:
                result = multiply_few(packed, rows, routes.counts)
            else:
                result = multiply(packed, rows, routes.counts, turned)
        return _weighted_sum(result.index_select(0, routes.back), top_k_weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        routes = ctx.routes
        rows = gradient.to(ctx.packed.dtype).index_select(0, routes.order // routes.top_k)
        with torch.autocast(rows.device.type, enabled=False):
            return multiply(ctx.packed, rows, routes.counts, not ctx.turned), None, None, None, None


@dataclass(frozen=True, slots=True)
class _Routes:
    """Which row goes where; integers only, a few bytes a token."""

    order: torch.Tensor  # position sorted by expert -> token * k + place
    back: torch.Tensor  # its inverse
    expert_ids: torch.Tensor  # ascending
    counts: list[int]  # rows of each expert
    top_k: int


def _routes(top_k_index: torch.Tensor, experts: int) -> _Routes:
    expert_ids, order = torch.sort(top_k_index.reshape(-1), stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    counts = torch.bincount(expert_ids, minlength=experts).tolist()
    return _Routes(order, back, expert_ids, counts, top_k_index.shape[-1])


def _weighted_sum(rows: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    # rows (tokens * k, hidden) in the order of the tokens; in the dtype of the weights, float32.
    weights = top_k_weights.unsqueeze(-1)
    return (rows.view(*top_k_weights.shape, rows.shape[-1]) * weights).sum(dim=1)


def packed_experts_forward(
    self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Experts function of transformers' interface: hidden_states (tokens, hidden), both top_k (tokens, k).

    No token is dropped, whatever the routing. Computes in the dtype of the packed tensors, as Linear4bit does,
    sums the k results in the dtype of the routing weights (float32), and returns the dtype of `hidden_states`.
    """
    if self._is_expert_parallel:
        raise NotImplementedError(
            "packed experts lie whole on each rank; expert parallelism is not supported"
        )
    routes, turned = _routes(top_k_index, self.num_experts), not self.is_transposed
    name = "gate_up_proj" if self.has_gate else "up_proj"
    inner, outer = getattr(self, name), self.down_proj
    rows = _Spread.apply(hidden_states.to(inner.dtype), routes.order, routes.back, routes.top_k)
    rows = _PackedProduct.apply(rows, inner, routes.counts, turned)  # (tokens * k, 2 x intermediate)
    if self.has_bias:
        rows = rows + getattr(self, f"{name}_bias")[routes.expert_ids].to(rows.dtype)
    rows = self._apply_gate(rows) if self.has_gate else self.act_fn(rows)
    if self.has_bias or self.has_post_expert_norm:
        rows = _PackedProduct.apply(rows, outer, routes.counts, turned)
        if self.has_bias:
            rows = rows + self.down_proj_bias[routes.expert_ids].to(rows.dtype)
        if self.has_post_expert_norm:
            rows = self.post_expert_norm(rows)
        result = _weighted_sum(rows[routes.back], top_k_weights)
    else:
        rows = _Hold.apply(rows, top_k_weights.reshape(-1)[routes.order])
        result = _DownAndSum.apply(rows, top_k_weights.detach(), outer, routes, turned)
    return result.to(hidden_states.dtype)


def fused_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(full name, module, attribute) of each dense fused tensor that the experts interface computes with."""
    for path, module in model.named_modules():
        for name in FUSED:
            if is_fused(module, name):
                yield f"{path}.{name}".lstrip("."), module, name


def is_fused(module: nn.Module, name: str) -> bool:
    """Whether `name` is a dense fused tensor of a module that takes part in the experts interface."""
    value = module._parameters.get(name) if name in FUSED else None
    return value is not None and value.dim() == 3 and hasattr(module, "_apply_gate")


def pack(module: nn.Module, name: str, double_quant: bool, dtype: torch.dtype | None = None) -> PackedExperts:
    """Replaces the fused parameter `name` of an experts module by its packed form."""
    return replace(module, name, PackedExperts.of(getattr(module, name).data, double_quant, dtype))


def replace(module: nn.Module, name: str, packed: PackedExperts) -> PackedExperts:
    """Puts a packed store in the place of the fused parameter `name`."""
    delattr(module, name)
    module.add_module(name, packed)
    return packed
