"""Norms, routers and rotary embeddings in fewer kernels than transformers', which a card would spend its time on.

Code is replaced only where its text is Mixtral's; other forms stay as they are.
"""

import sys
from collections.abc import Callable
from inspect import getsource
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.models.mixtral import modeling_mixtral as mixtral

MIXTRAL_ROTARY = mixtral.apply_rotary_pos_emb  # before `rotate` takes its place


def fuse(model: nn.Module) -> int:
    """Replaces the parts of a model that have Mixtral's form; returns the number of its modules that change."""
    return sum(_fuse(module) for module in model.modules())


def _fuse(module: nn.Module) -> bool:
    name, forward = type(module).__name__, type(module).forward
    if name.endswith("RMSNorm") and _same(forward, mixtral.MixtralRMSNorm.forward):
        module.forward = MethodType(_norm, module)
        return True
    if name.endswith("Router") and _same(forward, mixtral.MixtralTopKRouter.forward):
        module.forward = MethodType(_route, module)
        return True
    return name.endswith("Attention") and _fuse_rotary(sys.modules[type(module).__module__])


def _same(one: Callable, two: Callable) -> bool:
    return getsource(one) == getsource(two)


def _norm(self: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    # Products with the weight are rounded once instead of twice. Autocast would compute and return float32.
    with torch.autocast(hidden_states.device.type, enabled=False):
        return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


def _route(self: nn.Module, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # The k largest probabilities over their sum are the softmax of the k largest logits.
    logits = nn.functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
    values, experts = torch.topk(logits, self.top_k, dim=-1)
    return logits, values.softmax(dim=-1, dtype=torch.float32), experts


def _fuse_rotary(code: Any) -> bool:
    plain = getattr(code, "apply_rotary_pos_emb", None)
    if plain is None:
        return False
    if plain is not rotate:
        if not (_same(plain, MIXTRAL_ROTARY) and _same(code.rotate_half, mixtral.rotate_half)):
            return False
        code.apply_rotary_pos_emb = rotate
    return True


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """As transformers' `apply_rotary_pos_emb`: q and k (B, heads, T, d), cos and sin (B, T, d).

    On a CPU it is that function, so that a model has the same bits there whatever was loaded before.
    """
    if not q.is_cuda or unsqueeze_dim != 1:
        return MIXTRAL_ROTARY(q, k, cos, sin, unsqueeze_dim)
    if q.shape[2] == 1 and not torch.is_grad_enabled():
        matrices = _rotations(cos, sin)
        return tuple(torch.matmul(rows[:, :, 0], matrices)[:, :, None] for rows in (q, k))
    return tuple(Rotation.apply(rows, cos[:, None], sin[:, None]) for rows in (q, k))


def _rotations(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The rotation of each row (B, d, d), made once for all layers, which get the same `cos`: one product a tensor."""
    found = getattr(cos, "rotations", None)
    if found is None:
        one = torch.eye(cos.shape[-1], dtype=cos.dtype, device=cos.device)
        half = torch.cat([one[cos.shape[-1] // 2 :], -one[: cos.shape[-1] // 2]])  # rotate_half(x) = x half
        found = cos.rotations = torch.addcmul(one * cos, half, sin)
    return found


class Rotation(torch.autograd.Function):
    """Rows (B, heads, T, d) times cos plus their turned halves times sin, both (B, 1, T, d), in half the passes."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        first, last = sin.chunk(2, dim=-1)
        return _turned(rows, cos, (-first, last))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, last = sin.chunk(2, dim=-1)
        return _turned(gradient, cos, (last, -first)), None, None


def _turned(rows: torch.Tensor, cos: torch.Tensor, sin: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    result = torch.empty_like(rows)
    halves = (tensor.chunk(2, dim=-1) for tensor in (result, rows, cos))
    for out, own, factor, other, angle in zip(*halves, reversed(rows.chunk(2, dim=-1)), sin, strict=True):
        torch.mul(own, factor, out=out).addcmul_(other, angle)
    return result
