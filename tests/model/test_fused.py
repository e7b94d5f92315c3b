"""What a card computes in fewer kernels is what transformers computes, and only what has Mixtral's form is replaced."""

import torch
from torch import nn
from transformers import MixtralConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralAttention, MixtralRMSNorm, MixtralTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from aurora.model import fused


def test_a_norm_in_one_kernel_is_that_of_transformers_but_for_one_rounding():
    torch.manual_seed(0)
    norms = nn.ModuleList([MixtralRMSNorm(64), Qwen3MoeRMSNorm(64), GemmaRMSNorm(64)])
    for norm in norms:
        nn.init.normal_(norm.weight)
    rows = torch.randn(7, 64)
    before = [norm(rows) for norm in norms]
    half = [norm.to(torch.bfloat16)(rows.bfloat16()) for norm in norms]
    assert fused.fuse(norms) == 2  # Gemma's adds one to its weight
    for norm, expected in zip(norms, half, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            found = norm(rows.bfloat16())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
    for norm, expected in zip(norms.float(), before, strict=True):
        torch.testing.assert_close(norm(rows), expected, rtol=2**-7, atol=1e-2)  # weights went through bfloat16


def test_a_router_of_few_kernels_gives_transformers_experts_weights_and_gradients():
    torch.manual_seed(0)
    router = MixtralTopKRouter(MixtralConfig(hidden_size=64, num_local_experts=8, num_experts_per_tok=2))
    nn.init.normal_(router.weight)
    rows = torch.randn(3, 50, 64, requires_grad=True)
    factors = torch.randn(150, 2)
    results = []
    for changed in (0, 1):
        assert fused.fuse(nn.ModuleList([router] if changed else [])) == changed
        logits, weights, experts = router(rows)
        (gradient,) = torch.autograd.grad((weights * factors).sum(), rows)
        results.append((logits, weights, experts, gradient))
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain)


def test_a_rotation_of_halves_and_one_by_matrices_are_transformers_own():
    torch.manual_seed(0)
    rows = torch.randn(2, 7, 4, 16, dtype=torch.float64).transpose(1, 2).requires_grad_()
    cos, sin = torch.randn(2, 2, 7, 16, dtype=torch.float64)  # any, so that no half stands for the other
    expected, _ = fused.MIXTRAL_ROTARY(rows, rows, cos, sin)
    found = fused.Rotation.apply(rows, cos[:, None], sin[:, None])
    torch.testing.assert_close(found, expected)
    assert found.stride() == rows.stride()  # no kernel of attention has to copy it
    gradient = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(result, rows, gradient)[0] for result in (found, expected)))
    for place in range(7):
        one = rows[:, :, place].detach()
        turned = one @ fused._rotations(cos[:, place : place + 1].clone(), sin[:, place : place + 1])
        torch.testing.assert_close(turned, expected[:, :, place])


def test_attention_of_mixtral_s_form_gets_the_rotation_and_keeps_its_bits_on_a_cpu(monkeypatch):
    from transformers.models.mixtral import modeling_mixtral

    monkeypatch.setattr(modeling_mixtral, "apply_rotary_pos_emb", fused.MIXTRAL_ROTARY)
    attention = MixtralAttention(MixtralConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2), 0)
    assert fused.fuse(nn.ModuleList([attention])) == 1
    assert modeling_mixtral.apply_rotary_pos_emb is fused.rotate
    rows, angles = torch.randn(1, 4, 5, 16), torch.randn(2, 1, 5, 16)
    plain, found = fused.MIXTRAL_ROTARY(rows, rows, *angles), fused.rotate(rows, rows, *angles)
    assert all(torch.equal(*pair) for pair in zip(plain, found, strict=True))
