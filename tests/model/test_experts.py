"""Packed experts against transformers' own experts on the dequantised weights, and against bitsandbytes' packing."""

from types import SimpleNamespace

import pytest
import torch
from bitsandbytes import functional as bnb
from torch.utils.checkpoint import checkpoint
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.muse_spark.configuration_muse_spark import MuseSparkTextConfig
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from aurora.model import experts as module
from aurora.model import nf4
from aurora.model.experts import IMPLEMENTATION, Group, pack, packed_experts_forward, product, product_of_few
from aurora.model.nf4 import PackedExperts

EXPERTS, HIDDEN, INNER, TOP = 8, 64, 96, 2


@pytest.fixture(autouse=True)
def _registered():
    from aurora.model.packing import register

    register()
    torch.manual_seed(0)


def dense_and_packed(kind=MixtralExperts, double_quant=True, dtype=torch.float32, **changes):
    """Two modules of one kind that hold the same values: dense ones run eagerly, and packed ones."""
    configs = {
        MixtralExperts: lambda: MixtralConfig(
            hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS, num_experts_per_tok=TOP
        ),
        Qwen3MoeExperts: lambda: Qwen3MoeConfig(
            hidden_size=HIDDEN, moe_intermediate_size=INNER, num_experts=EXPERTS, num_experts_per_tok=TOP
        ),
        GptOssExperts: lambda: GptOssConfig(
            hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS, num_experts_per_tok=TOP
        ),
        MuseSparkExperts: lambda: MuseSparkTextConfig(
            moe_hidden_size=HIDDEN, moe_intermediate_size=INNER, num_local_experts=EXPERTS
        ),
    }
    modules = []
    for implementation in ("eager", IMPLEMENTATION):
        config = configs[kind]()
        config._experts_implementation = implementation
        modules.append(kind(config))
    dense, packed = modules
    for name, weight in dense.named_parameters():
        weight.data = (torch.randn(weight.shape) * 0.2).to(dtype)
        packed.get_parameter(name).data = weight.data.clone()
    for name in ("gate_up_proj", "down_proj"):
        store = pack(packed, name, double_quant)
        getattr(dense, name).data = torch.stack([store.dense(expert) for expert in range(EXPERTS)])
    return dense, packed


def routing(kind: str, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """top_k_index and top_k_weights (tokens, k)."""
    scores = torch.randn(tokens, EXPERTS)
    if kind == "expert 3 unused":
        scores[:, 3] = -9
    elif kind == "all to experts 5 and 2":
        scores[:, 5], scores[:, 2] = 99, 98
    elif kind == "expert 0 has one token":
        scores[:, 0] = -9
        scores[tokens // 2, 0] = 9
    weights, index = scores.softmax(-1).topk(TOP)
    return index, weights / weights.sum(-1, keepdim=True)


def run(experts, hidden, index, weights):
    hidden, weights = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
    result = experts(hidden, index, weights)
    (result.float() * torch.linspace(-1, 1, result.shape[-1])).sum().backward()
    return result.detach(), hidden.grad, weights.grad


KINDS = ["random", "expert 3 unused", "all to experts 5 and 2", "expert 0 has one token"]


@pytest.mark.parametrize("tokens", [1, 2, 37, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_gives_the_bits_of_dense_weights(kind, tokens):
    """Forward bit for bit; backward weighs behind the product instead of before it: 1e-5."""
    dense, packed = dense_and_packed()
    index, weights = routing(kind, tokens)
    hidden = torch.randn(tokens, HIDDEN)
    ours, theirs = run(packed, hidden, index, weights), run(dense, hidden, index, weights)
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_no_token_at_all():
    _, packed = dense_and_packed()
    result, gradient, _ = run(packed, torch.randn(0, HIDDEN), *routing("random", 0))
    assert result.shape == gradient.shape == (0, HIDDEN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_dense_weights_are(kind, dtype):
    dense, packed = dense_and_packed(dtype=dtype)
    index, weights = routing(kind, 64)
    hidden = torch.randn(64, HIDDEN).to(dtype)
    ours, theirs = run(packed, hidden, index, weights), run(dense, hidden, index, weights)
    exact = run(dense.float(), hidden.float(), index, weights)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == other.dtype
        error, usual = ((mine.float() - truth).norm() / truth.norm(), (other.float() - truth).norm() / truth.norm())
        assert error < 1.2 * usual + 1e-6
        assert error < 0.02


OTHERS = [Qwen3MoeExperts, GptOssExperts, MuseSparkExperts]


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_other_mixtures_of_experts(kind):
    """Qwen3's are Mixtral's by another name; gpt-oss transposes, interleaves gate and up, and has biases; Muse
    Spark normalises each expert's result.
    """
    dense, packed = dense_and_packed(kind)
    index, weights = routing("random", 50)
    hidden = torch.randn(50, HIDDEN)
    for ours, theirs in zip(run(packed, hidden, index, weights), run(dense, hidden, index, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_expert_is_packed_as_bitsandbytes_packs_a_linear_layer(double_quant, dtype):
    weight = (torch.randn(3, 256, 192) * torch.rand(3, 256, 1)).to(dtype)
    packed = PackedExperts.of(weight, double_quant)
    for expert, matrix in enumerate(weight):
        codes, state = bnb.quantize_4bit(matrix, blocksize=64, compress_statistics=double_quant, quant_type="nf4")
        assert torch.equal(packed.codes[expert].view(-1), codes.view(-1))
        assert torch.equal(packed.dense(expert), bnb.dequantize_4bit(codes, state))


@pytest.mark.parametrize("picked", [[0], [4], [2, 3], [0, 5], [1, 2, 7]])
@pytest.mark.parametrize("shape", [(8, 128, 64), (8, 256, 192), (8, 6, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_table_and_the_kernel_give_equal_bits(picked, shape, dtype, monkeypatch):
    packed = PackedExperts.of(torch.randn(shape).to(dtype), True)
    monkeypatch.setattr(nf4, "KERNEL_ON_CPU", False)
    by_table = packed.dense_of(picked)
    monkeypatch.setattr(nf4, "KERNEL_ON_CPU", True)
    assert torch.equal(packed.dense_of(picked), by_table)
    assert torch.equal(packed.dense_of(picked), torch.stack([packed.dense(expert) for expert in picked]))


@pytest.mark.parametrize("shape", [(2, 128, 64), (2, 96, 192), (2, 128, 20)])
@pytest.mark.parametrize("most", [64, 1000, 5000])
def test_slabs_are_the_matrix_in_pieces(shape, most):
    packed = PackedExperts.of(torch.randn(shape), True)
    pieces = list(packed.slabs(1, torch.float32, most))
    assert [first for first, _, _ in pieces] == [0, *(last for _, last, _ in pieces[:-1])]
    assert torch.equal(torch.cat([piece for _, _, piece in pieces]), packed.dense(1))
    assert len(pieces) == 1 or max(piece.numel() for _, _, piece in pieces) <= max(most, 64 * shape[2])


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("cuts", [[64], [1, 127], [3, 5, 56, 64]])
def test_a_matrix_may_come_in_parts(double_quant, cuts, monkeypatch):
    matrix = torch.randn(sum(cuts), 20 if sum(cuts) % 64 == 0 else 64)
    whole = PackedExperts.of(matrix.unsqueeze(0), double_quant)
    monkeypatch.setattr(nf4, "SLICE", 128)
    parts = PackedExperts((1, *matrix.shape), double_quant, torch.float32, "cpu")
    parts.put(0, iter(matrix.split(cuts)))
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), parts.parameters(), strict=True))


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_slabs_and_fused_kernels_do_not_change_a_product(transposed, dtype, monkeypatch):
    packed = PackedExperts.of(torch.randn(8, 128, 64).to(dtype), True)
    experts, ends = [0, 2, 3, 6, 7], [3, 4, 11, 13, 17]
    rows = torch.randn(17, 64 if transposed else 128).to(dtype)
    pieces = zip(experts, [0, *ends], ends, strict=False)
    expected = torch.cat(
        [rows[a:b].float() @ (packed.dense(e).T if transposed else packed.dense(e)).float() for e, a, b in pieces]
    )
    close = 1e-6 if dtype == torch.float32 else 2**-8
    group = Group(experts, ends)
    found = [product_of_few(packed, group, rows, transposed)]
    for most in (2**20, 2048, 1):
        monkeypatch.setitem(module.AT_ONCE, "cpu", most)
        found.append(product(packed, group, rows, transposed))
    for result in found:
        assert result.dtype == dtype
        assert (result.float() - expected).norm(dim=1).le(close * expected.norm(dim=1)).all()


@pytest.mark.parametrize("most", [2**20, 2 * 192 * 64 * 4, 4096])
def test_groups_and_slabs_do_not_change_the_experts(most, monkeypatch):
    """All experts at once, two at a time, and a slab of one at a time."""
    dense, packed = dense_and_packed()
    index, weights = routing("random", 64)
    hidden = torch.randn(64, HIDDEN)
    monkeypatch.setitem(module.AT_ONCE, "cpu", most)
    ours, theirs = run(packed, hidden, index, weights), run(dense, hidden, index, weights)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_one_token_dequantises_only_its_experts(monkeypatch):
    _, packed = dense_and_packed()
    seen: list[list[int]] = []
    original = PackedExperts.dense_of
    monkeypatch.setattr(
        PackedExperts, "dense_of", lambda self, picked, dtype=None: seen.append(picked) or original(self, picked, dtype)
    )
    packed(torch.randn(1, HIDDEN), torch.tensor([[6, 1]]), torch.tensor([[0.5, 0.5]]))
    assert seen == [[1, 6], [1, 6]]


def test_one_token_by_its_own_way_is_as_by_the_way_of_many():
    _, packed = dense_and_packed()
    hidden, weights = torch.randn(1, HIDDEN), torch.tensor([[0.7, 0.3]])
    dispatch = module.ExpertDispatch.of(packed, torch.tensor([[6, 1]]))
    assert dispatch.is_plain
    torch.testing.assert_close(
        dispatch.forward_one(hidden, weights), dispatch.forward(hidden, weights), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("mode", ["plain", "reentrant", "not reentrant"])
def test_no_dense_weight_is_saved_for_backward(mode):
    dense, packed = dense_and_packed()
    index, weights = routing("random", 40)

    def saved_floats(experts) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Shapes saved by forward, and by forward and backward."""
        shapes = []
        hidden = torch.randn(40, HIDDEN, requires_grad=True)

        def pack_hook(tensor):
            if tensor.is_floating_point():
                shapes.append(tuple(tensor.shape))
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor)
        with hooks:
            if mode == "plain":
                result = experts(hidden, index, weights)
            else:
                result = checkpoint(experts, hidden, index, weights, use_reentrant=mode == "reentrant")
            forward = list(shapes)
            result.sum().backward()
        assert hidden.grad.abs().sum() > 0
        return forward, shapes

    matrices = {(2 * INNER, HIDDEN), (HIDDEN, 2 * INNER), (HIDDEN, INNER), (INNER, HIDDEN)}

    def weights_in(shapes):
        return [shape for shape in shapes if shape[-2:] in matrices]

    forward, shapes = saved_floats(packed)
    assert not weights_in(shapes)
    if mode == "plain":
        assert sorted(forward) == [(40, TOP), (40, HIDDEN)], "the inputs alone are kept"
        assert weights_in(saved_floats(dense)[0]), "the witness must see the dense weights of the eager path"


@pytest.mark.parametrize("mode, times", [("plain", 2 + 2), ("not reentrant", 2 + 2), ("reentrant", 2 + 2 + 2)])
def test_how_often_a_group_is_dequantised(mode, times, monkeypatch):
    """Forward needs both tensors once and backward too; checkpointing stops its recomputation before the experts."""
    packed = dense_and_packed()[1]
    seen = []
    original = PackedExperts.dense_of
    monkeypatch.setattr(
        PackedExperts, "dense_of", lambda self, picked, dtype=None: seen.append(picked) or original(self, picked, dtype)
    )
    index, weights = routing("random", 40)
    hidden = torch.randn(40, HIDDEN, requires_grad=True)
    if mode == "plain":
        result = packed(hidden, index, weights)
    else:
        result = checkpoint(packed, hidden, index, weights, use_reentrant=mode == "reentrant")
    result.sum().backward()
    assert seen == [list(range(EXPERTS))] * times


def test_no_dense_weight_lives_after_forward():
    import gc

    packed = dense_and_packed()[1]
    index, weights = routing("random", 40)
    result = packed(torch.randn(40, HIDDEN, requires_grad=True), index, weights)
    gc.collect()
    alive = [
        tensor.shape
        for tensor in gc.get_objects()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape[-2:] == (2 * INNER, HIDDEN)
    ]
    assert result.requires_grad and not alive


def test_autocast_computes_in_the_dtype_of_the_packed_tensors():
    """As under Trainer: norms in float32 feed float32 rows to experts that compute in bfloat16."""
    _, packed = dense_and_packed(dtype=torch.bfloat16)
    index, weights = routing("random", 33)
    hidden = torch.randn(33, HIDDEN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = packed(hidden, index, weights)
    assert result.dtype == torch.float32
    expected = packed(hidden.bfloat16(), index, weights).float()
    torch.testing.assert_close(result.bfloat16().float(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("double_quant, bits", [(True, 4.13), (False, 4.51)])
def test_bits_a_parameter_at_the_true_shape(double_quant, bits):
    stores = [
        PackedExperts(shape, double_quant, torch.bfloat16, "meta") for shape in [(8, 28672, 4096), (8, 4096, 14336)]
    ]
    held = sum(tensor.numel() * tensor.element_size() for store in stores for tensor in store.parameters())
    assert 4 < 8 * held / (3 * 8 * 4096 * 14336) <= bits


def test_nothing_that_distributed_training_would_send_each_step():
    _, packed = dense_and_packed()
    assert not list(packed.buffers())
    assert not any(parameter.requires_grad for parameter in packed.parameters())


@pytest.mark.parametrize(
    "weight, told",
    [
        (torch.zeros(8, 64), "experts, rows, columns"),
        (torch.zeros(2, 3, 10), "64n weights an expert"),
        (torch.zeros(2, 64, 64, dtype=torch.float64), "float64, which NF4 cannot hold"),
        (torch.zeros(2, 64, 64, dtype=torch.int8), "int8, which NF4 cannot hold"),
    ],
)
def test_what_cannot_be_packed(weight, told):
    with pytest.raises(ValueError, match=told):
        PackedExperts.of(weight, True)


def test_expert_parallelism_is_refused():
    with pytest.raises(NotImplementedError, match="expert parallelism"):
        packed_experts_forward(SimpleNamespace(_is_expert_parallel=True), None, torch.zeros(1, 2), None)
