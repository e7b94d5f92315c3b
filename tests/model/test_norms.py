"""A norm in one kernel is the norm of transformers, and only a norm of that form is replaced."""

import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from aurora.model.norms import fuse_norms


def test_a_norm_in_one_kernel_is_that_of_transformers_but_for_one_rounding():
    torch.manual_seed(0)
    norms = nn.ModuleList([MixtralRMSNorm(64), Qwen3MoeRMSNorm(64), GemmaRMSNorm(64)])
    for norm in norms:
        nn.init.normal_(norm.weight)
    rows = torch.randn(7, 64)
    before = [norm(rows) for norm in norms]
    half = [norm.to(torch.bfloat16)(rows.bfloat16()) for norm in norms]
    assert fuse_norms(norms) == 2  # Gemma's adds one to its weight
    for norm, expected in zip(norms, half, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            found = norm(rows.bfloat16())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
    for norm, expected in zip(norms.float(), before, strict=True):
        torch.testing.assert_close(norm(rows), expected, rtol=2**-7, atol=1e-2)  # weights went through bfloat16
