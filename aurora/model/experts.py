"""NF4 experts for any transformers-5 mixture of experts whose experts are fused 3-D tensors.

transformers 5 holds the experts of a layer as two parameters, `gate_up_proj` (experts, 2 x intermediate, hidden)
and `down_proj` (experts, hidden, intermediate), which bitsandbytes does not see: asked for 4 bits it leaves them
in bfloat16 without a word. Here they are PackedExperts, computed with through the public experts interface. A LoRA on them stays two small matrices for each expert.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from aurora.model.machine import card_memory
from aurora.model.nf4 import PackedExperts, pick

IMPLEMENTATION = "aurora_nf4"  # name in transformers' experts interface
GROUPED = torch.bfloat16  # the only type for which torch has a fast product of many matrices, `grouped_mm`
FUSED = ("gate_up_proj", "up_proj", "down_proj")  # names of fused tensors in transformers' experts modules
# Bytes of a dense fused tensor that exist at a time: part of a cache on a CPU, one expert of Mixtral-8x7B on a card.
AT_ONCE = {"cpu": 4 * 2**20, "cuda": 224 * 2**20}
CARD_SHARE = 32  # as much of a card's memory may be dense at a time, where the experts can be computed together
FEW = 32  # mean rows of an expert up to which bitsandbytes chooses between its kernel for few rows and a dense matrix


class Group(NamedTuple):
    """Experts that are computed together, and their rows, which lie sorted by expert."""

    experts: list[int]
    ends: list[int]  # where the rows of each end
    offsets: torch.Tensor | None = None  # (experts,) int32, `ends` on the device


def bytes_at_once(card: int | None, dtype: torch.dtype) -> int:
    """Bytes of a dense fused tensor that exist at a time; `card` is the memory of a card, None on a CPU."""
    if card is None:
        return AT_ONCE["cpu"]
    return max(AT_ONCE["cuda"], card // CARD_SHARE) if dtype == GROUPED else AT_ONCE["cuda"]


def _at_once(device: torch.device, dtype: torch.dtype) -> int:
    return bytes_at_once(card_memory(device), dtype)


def dequantized(
    packed: PackedExperts, experts: list[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """The matrices of some experts, dense, where AT_ONCE allows that."""
    matrix = packed.shape[1] * packed.shape[2] * dtype.itemsize
    return packed.dense_of(experts, dtype) if matrix <= _at_once(device, dtype) else None


def product(
    packed: PackedExperts, group: Group, rows: torch.Tensor, transposed: bool, dense: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows (n, inputs), sorted by expert, times each expert's matrix, or its transpose if `transposed`: (n, outputs).

    Expert i of the group has the rows from ends[i - 1] to ends[i]. A matrix beyond AT_ONCE is never dense as a
    whole: it is dequantised and used slab by slab. `dense` is what `dequantized` gave for these experts.
    """
    experts, ends, _ = group
    if dense is None:
        dense = dequantized(packed, experts, rows.dtype, rows.device)
    if dense is not None:
        return _grouped(rows, dense.transpose(1, 2) if transposed else dense, group)
    make = rows.new_empty if transposed else rows.new_zeros
    kind = rows.dtype if transposed else torch.float32  # a sum over slabs is rounded once
    result = make(len(rows), packed.shape[1 if transposed else 2], dtype=kind)
    most = _at_once(rows.device, rows.dtype) // rows.element_size()
    for expert, start, end in zip(experts, [0, *ends], ends, strict=False):
        part, out = rows[start:end], result[start:end]
        for first, last, slab in packed.slabs(expert, rows.dtype, most):
            if transposed:
                torch.mm(part, slab.t(), out=out[:, first:last])
            elif kind == part.dtype:
                out.addmm_(part[:, first:last], slab)
            else:
                out.add_(part[:, first:last] @ slab)
    return result.to(rows.dtype)


def _grouped(rows: torch.Tensor, dense: torch.Tensor, group: Group) -> torch.Tensor:
    # grouped_mm needs 16-byte rows; in float32 a loop is as fast, and adds up as a linear layer does in every mode
    # of MKL; float16 it takes on no card.
    _, ends, offsets = group
    aligned = all(size * rows.element_size() % 16 == 0 for size in dense.shape[1:])
    if len(ends) > 1 and rows.dtype == GROUPED and aligned:
        if offsets is None:
            offsets = torch.tensor(ends, dtype=torch.int32, device=rows.device)
        return nn.functional.grouped_mm(rows, dense, offs=offsets)
    out = rows.new_empty(len(rows), dense.shape[2])
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        torch.mm(rows[start:end], dense[expert], out=out[start:end])
    return out


def product_of_few(packed: PackedExperts, group: Group, rows: torch.Tensor, transposed: bool = True) -> torch.Tensor:
    """As `product`, without any dense weight where the card has a kernel for so few rows of an expert."""
    if not transposed:
        return product(packed, group, rows, transposed)
    experts, ends, _ = group
    parts = rows.split([end - start for start, end in zip([0, *ends], ends, strict=False)])
    return torch.cat([packed.fused_product(*pair) for pair in zip(experts, parts, strict=True)])


def _row_products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The inner product of each row of two tensors (n, m), added up in float32: (n, 1)."""
    if left.is_cuda and left.dtype != torch.float32:  # without copies in float32, which a CPU cannot do without
        return torch.bmm(left[:, None], right[:, :, None], out_dtype=torch.float32)[:, 0]
    return (left.float() * right.float()).sum(1, keepdim=True)


@dataclass(frozen=True, slots=True)
class ExpertLora:
    """LoRA of a fused tensor: scale * B A for each expert, which is never multiplied out."""

    a: torch.Tensor  # (experts, r, inputs)
    b: torch.Tensor  # (experts, outputs, r)
    scale: float

    def product(self, group: Group, rows: torch.Tensor) -> torch.Tensor:
        """scale * rows A' B' of each row's expert: (n, inputs) -> (n, outputs); rows as for `product`."""
        low = self.low(group, rows)
        return _grouped(low, _matrices(self.b, group, rows).transpose(1, 2), group).mul_(self.scale)

    def product_back(self, group: Group, rows: torch.Tensor) -> torch.Tensor:
        """scale * rows B A: the gradient of the inputs (n, inputs) from that of the outputs (n, outputs)."""
        high = self.high(group, rows)
        return _grouped(high, _matrices(self.a, group, rows), group).mul_(self.scale)

    def low(self, group: Group, rows: torch.Tensor) -> torch.Tensor:
        """rows A' (n, r)."""
        return _grouped(rows, _matrices(self.a, group, rows).transpose(1, 2), group)

    def high(self, group: Group, rows: torch.Tensor) -> torch.Tensor:
        """rows B (n, r)."""
        return _grouped(rows, _matrices(self.b, group, rows), group)

    def add_gradients(
        self, into: tuple[torch.Tensor, torch.Tensor], group: Group, inputs: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Writes the gradients of A and B of these experts; `gradient` (n, outputs) is that of the outputs."""
        low, high = self.low(group, inputs), self.high(group, gradient)
        for expert, start, end in zip(group.experts, [0, *group.ends], group.ends, strict=False):
            into[0][expert] = (high[start:end].t() @ inputs[start:end]).mul_(self.scale)
            into[1][expert] = (gradient[start:end].t() @ low[start:end]).mul_(self.scale)


def _matrices(factor: torch.Tensor, group: Group, rows: torch.Tensor) -> torch.Tensor:
    # Contiguous, since grouped_mm takes no others: PEFT's B has the experts innermost.
    return factor[pick(group.experts)].to(rows.dtype).contiguous()


def packed_of(module: nn.Module, name: str) -> tuple[PackedExperts, ExpertLora | None]:
    """The packed tensor `name` of an experts module, and the LoRA on it where an adapter is active."""
    found = getattr(module, name)
    return (found, None) if isinstance(found, PackedExperts) else (found.base_layer, found.expert_lora())


@dataclass(frozen=True)
class ExpertDispatch:
    """One pass of tokens through the experts of a layer; what it keeps is integers, a few bytes a token.

    The tokens are sorted when first computed with: gradient checkpointing makes a second one of these, and stops
    before it is used.
    """

    module: nn.Module
    up: PackedExperts
    down: PackedExperts
    up_lora: ExpertLora | None
    down_lora: ExpertLora | None
    choices: torch.Tensor  # (tokens, k) experts of each token

    @classmethod
    def of(cls, module: nn.Module, top_k_index: torch.Tensor) -> "ExpertDispatch":
        """For the choices (tokens, k) of a layer's router."""
        up, up_lora = packed_of(module, _up_name(module))
        down, down_lora = packed_of(module, "down_proj")
        return cls(module, up, down, up_lora, down_lora, top_k_index)

    @cached_property
    def _sorted(self) -> tuple[torch.Tensor, torch.Tensor]:
        # An expert's rows have the order of transformers' eager loop, since in MKL's compatible mode a row's sum
        # depends on its place.
        return torch.sort(self.choices.t().reshape(-1), stable=True)

    @property
    def expert_ids(self) -> torch.Tensor:
        """(n,) of each row, ascending; n = tokens * k, and no row is ever dropped."""
        return self._sorted[0]

    @property
    def order(self) -> torch.Tensor:
        """(n,) place of each row in transformers' own order: choice * tokens + token."""
        return self._sorted[1]

    @cached_property
    def back(self) -> torch.Tensor:
        """(k, tokens) inverse of `order`."""
        back = torch.empty_like(self.order)
        back[self.order] = torch.arange(len(self.order), device=self.order.device)
        return back.view(self.choices.t().shape)

    @cached_property
    def _ends(self) -> tuple[torch.Tensor, list[int]]:
        # Where each expert's rows end, on the device and here: the one time that a card is waited for.
        experts = torch.arange(self.module.num_experts, device=self.expert_ids.device)
        ends = torch.searchsorted(self.expert_ids, experts, right=True, out_int32=True)
        return ends, ends.tolist()

    def groups(self, few: bool = False) -> Iterator[tuple[slice, Group]]:
        """Rows and experts that are computed together; experts without a row are left out.

        `few` for a product without dense matrices, of which any number go together.
        """
        device_ends, ends = self._ends
        matrix = self.up.shape[1] * self.up.shape[2] * self.up.dtype.itemsize
        size = len(ends) if few else max(1, _at_once(self.order.device, self.up.dtype) // matrix)
        routed = [expert for expert, end in enumerate(ends) if end > (ends[expert - 1] if expert else 0)]
        start = 0
        for at in range(0, len(routed), size):
            experts = routed[at : at + size]
            stop = ends[experts[-1]]
            offsets = None
            if self.up.dtype == GROUPED and experts[-1] - experts[0] + 1 == len(experts):
                offsets = device_ends[experts[0] : experts[-1] + 1] - start
            yield slice(start, stop), Group(experts, [ends[expert] - start for expert in experts], offsets)
            start = stop

    def gather(self, values: torch.Tensor, part: slice) -> torch.Tensor:
        """The rows of `values` (tokens, …) that the rows `part` come from, in the experts' dtype."""
        return values.index_select(0, self.order[part] % max(1, len(values))).to(self.up.dtype)

    def biased(self, rows: torch.Tensor, name: str, part: slice) -> torch.Tensor:
        """Rows plus the bias of their expert, where the model has such."""
        if not self.module.has_bias:
            return rows
        return rows + getattr(self.module, f"{name}_bias")[self.expert_ids[part]].to(rows.dtype)

    def gated(self, rows: torch.Tensor) -> torch.Tensor:
        """The model's own gate and activation."""
        return self.module._apply_gate(rows) if self.module.has_gate else self.module.act_fn(rows)

    def forward(self, hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """hidden (tokens, hidden), weights (tokens, k): the weighted sum over k, summed in the dtype of `weights`."""
        transposed = not self.module.is_transposed
        if hidden.is_cuda and transposed and len(hidden) == 1 and self.is_plain:
            return self.forward_one(hidden, weights)
        few = hidden.is_cuda and transposed and self.choices.numel() <= FEW * self.module.num_experts
        times: Callable = product_of_few if few else product
        rows = hidden.new_empty(0, hidden.shape[1], dtype=self.up.dtype)
        for part, group in self.groups(few):
            given = self.gather(hidden, part)
            inside = adapted(times(self.up, group, given, transposed), self.up_lora, group, given)
            inside = self.gated(self.biased(inside, _up_name(self.module), part))
            outside = adapted(times(self.down, group, inside, transposed), self.down_lora, group, inside)
            outside = self.biased(outside, "down_proj", part)
            if self.module.has_post_expert_norm:
                outside = self.module.post_expert_norm(outside)
            rows = self._placed(rows, part, outside)
        return self._summed(rows, weights).to(hidden.dtype)

    def _placed(self, rows: torch.Tensor, part: slice, values: torch.Tensor) -> torch.Tensor:
        # Values that are all the rows need no copy.
        if len(values) == len(self.order):
            return values
        if not len(rows):
            rows = values.new_empty(len(self.order), values.shape[1])
        rows[part] = values
        return rows

    def _summed(self, rows: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """The sum of each token's rows, in a fixed order: adding to the tokens' places would be atomic on a card."""
        total = None
        for choice, places in enumerate(self.back):
            part = rows.index_select(0, places)
            part = part if weights is None else part * weights[:, choice, None]
            total = part if total is None else total.add_(part)
        assert total is not None  # a token has one expert at least
        return total

    @property
    def is_swiglu(self) -> bool:
        """Whether the gate is SiLU in transformers' default form."""
        from transformers.activations import SiLUActivation
        from transformers.integrations.moe import _default_apply_gate

        module = self.module
        default = module.has_gate and type(module)._apply_gate is _default_apply_gate
        return default and isinstance(module.act_fn, (nn.SiLU, SiLUActivation))

    @property
    def is_plain(self) -> bool:
        """Whether nothing but two products and a gate make up an expert."""
        adapted_or_biased = self.up_lora or self.down_lora or self.module.has_bias
        return not (adapted_or_biased or self.module.has_post_expert_norm)

    def forward_one(self, hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """As `forward` for a single token, whose rows need no sorting: a third of the kernels."""
        experts = self.choices[0].tolist()
        group = Group(experts, list(range(1, len(experts) + 1)))
        rows = hidden.to(self.up.dtype).expand(len(experts), -1)
        inside = self.gated(product_of_few(self.up, group, rows))
        torch.mul(inside, weights.t(), out=inside)
        total = None
        for expert, row in zip(experts, inside, strict=True):  # each product takes the sum of those before as its bias
            total = self.down.fused_product(expert, row[None], None if total is None else total[0])
        assert total is not None
        return total.to(hidden.dtype)

    def backward(
        self, gradient: torch.Tensor, hidden: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `hidden`, of `weights`, and of A and B of both tensors, None where there is no LoRA.

        The inner activations are computed again, one group at a time. With y = W a and the output w y:
        d/dw = g . y = (W' g) . a, so that the product with down_proj is not.
        """
        transposed, module = not self.module.is_transposed, self.module
        d_rows = hidden.new_empty(0, hidden.shape[1], dtype=self.up.dtype)
        sorted_weights = weights.t().reshape(-1)[self.order].unsqueeze(1)
        d_weights = torch.empty_like(sorted_weights, dtype=torch.float32)
        up_gradients, down_gradients = _zeros(self.up_lora), _zeros(self.down_lora)
        late = self.up_lora is None and not module.has_post_expert_norm  # the weights can wait for narrower rows
        for part, group in self.groups():
            weight, above = sorted_weights[part], self.gather(gradient, part)
            dense = dequantized(self.up, group.experts, self.up.dtype, hidden.device)
            given = self.gather(hidden, part)
            inside = adapted(product(self.up, group, given, transposed, dense), self.up_lora, group, given)
            inside = self.biased(inside, _up_name(module), part)
            if late and self.is_swiglu and inside.dtype != torch.float32 and not (self.down_lora or module.has_bias):
                below, d_weights[part] = _swiglu_back(inside, self._down_back(above, group, transposed))
                d_rows = self._placed(d_rows, part, product(self.up, group, below, not transposed, dense))
                continue
            inside = inside.detach().requires_grad_()
            with torch.enable_grad():
                after = self.gated(inside)
            if module.has_post_expert_norm:
                outside = product(self.down, group, after.detach(), transposed)
                outside = adapted(outside, self.down_lora, group, after.detach())
                outside = self.biased(outside, "down_proj", part).requires_grad_()
                with torch.enable_grad():
                    normed = module.post_expert_norm(outside)
                d_weights[part] = _row_products(above, normed.detach())
                (above,) = torch.autograd.grad(normed, outside, (above * weight).to(normed.dtype))
                below = self._down_back(above, group, transposed)
            else:
                below = self._down_back(above, group, transposed)
                d_weights[part] = _row_products(below, after.detach())
                if module.has_bias:
                    bias = module.down_proj_bias[self.expert_ids[part]]
                    d_weights[part] += (above.float() * bias.float()).sum(1, keepdim=True)
                if not late:
                    below = (below * weight).to(after.dtype)
                above = (above * weight).to(after.dtype) if self.down_lora else above
            if self.down_lora:
                self.down_lora.add_gradients(down_gradients, group, after.detach(), above)
            (below,) = torch.autograd.grad(after, inside, below)
            d_given = product(self.up, group, below, not transposed, dense)
            if self.up_lora:
                self.up_lora.add_gradients(up_gradients, group, given, below)
                d_given += self.up_lora.product_back(group, below)
            d_rows = self._placed(d_rows, part, d_given)
        total = self._summed(d_rows, weights if late else None)
        d_weights = d_weights.view(-1)[self.back].t()
        return total.to(hidden.dtype), d_weights.to(weights.dtype), *up_gradients, *down_gradients

    def _down_back(self, above: torch.Tensor, group: Group, transposed: bool) -> torch.Tensor:
        below = product(self.down, group, above, not transposed)
        return below + self.down_lora.product_back(group, above) if self.down_lora else below


def _swiglu_back(inside: torch.Tensor, below: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `inside` (n, 2 x inner), and below . silu(gate) up (n, 1), from that of the gated rows (n, inner).

    Autograd would form the gated rows, and copy both halves into one tensor: seven more passes over n x inner.
    """
    result = torch.empty_like(inside)
    (gate, up), (d_gate, d_up) = inside.chunk(2, dim=1), result.chunk(2, dim=1)
    torch.mul(below, nn.functional.silu(gate), out=d_up)
    weights = _row_products(d_up, up)
    torch.ops.aten.silu_backward.grad_input(below.mul_(up), gate, grad_input=d_gate)
    return result, weights


def _up_name(module: nn.Module) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def adapted(result: torch.Tensor, lora: ExpertLora | None, group: Group, rows: torch.Tensor) -> torch.Tensor:
    """`result` plus what the LoRA makes of `rows`."""
    return result if lora is None else result + lora.product(group, rows)


def _zeros(lora: ExpertLora | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if lora is None else (torch.zeros_like(lora.a), torch.zeros_like(lora.b))


class _SaveInputs(torch.autograd.Function):
    """Keeps the inputs of the experts; its backward is that of the whole computation.

    Gradient checkpointing recomputes a layer up to the last tensor that was saved. That is this one, so that the
    recomputation stops before the experts: `_Compute` saves nothing.
    """

    @staticmethod
    def forward(
        ctx, hidden: torch.Tensor, weights: torch.Tensor, dispatch: ExpertDispatch, *adapter: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.dispatch = dispatch
        ctx.save_for_backward(hidden, weights, *adapter)
        return hidden.view_as(hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        hidden, weights, *_ = ctx.saved_tensors  # A and B too, so that a change in place is noticed
        with torch.autocast(gradient.device.type, enabled=False):
            d_hidden, d_weights, *adapter = ctx.dispatch.backward(gradient, hidden, weights)
        return d_hidden, d_weights, None, *adapter


class _Compute(torch.autograd.Function):
    """The experts' result; hands its gradient to `_SaveInputs` as it is."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weights: torch.Tensor, dispatch: ExpertDispatch) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return dispatch.forward(hidden, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return gradient, None, None


def packed_experts_forward(
    self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Experts function of transformers' interface: hidden_states (tokens, hidden), both top_k (tokens, k).

    No token is dropped, whatever the routing. Computes in the dtype of the packed tensors, as Linear4bit does,
    sums the k results in the dtype of the routing weights (float32), and returns the dtype of `hidden_states`.
    For backward it keeps its inputs alone, and no dense weight.
    """
    if self._is_expert_parallel:
        raise NotImplementedError("packed experts lie whole on each rank; expert parallelism is not supported")
    dispatch = ExpertDispatch.of(self, top_k_index)
    adapter = [
        tensor
        for lora in (dispatch.up_lora, dispatch.down_lora)
        for tensor in ((None, None) if lora is None else (lora.a, lora.b))
    ]
    given = _SaveInputs.apply(hidden_states, top_k_weights, dispatch, *adapter)
    return _Compute.apply(given, top_k_weights.detach(), dispatch)


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
