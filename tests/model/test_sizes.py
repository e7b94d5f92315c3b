"""The arithmetic of `aurora inspect` against tensors that are really held and files that were really written."""

import json

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from click.testing import CliRunner
from transformers import MixtralConfig, MixtralForCausalLM

from aurora.commands.inspect import inspect
from aurora.model.folder import group_of, read_headers
from aurora.model.loading import load_model
from aurora.model.packing import save_packed
from aurora.model.quantization import Quantization
from aurora.model.sizes import planned_tensors, stored

SIZES = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, **HEADS)).to(torch.bfloat16)
    model.save_pretrained(path, max_shard_size="100KB")
    return path


def run(*arguments) -> dict:
    result = CliRunner().invoke(inspect, [str(argument) for argument in arguments] + ["--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def held(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_dense_groups_are_those_of_the_model(folder):
    groups = run(folder)
    model = MixtralForCausalLM.from_pretrained(folder)
    assert groups["total"]["parameters"] == model.num_parameters()
    assert {group["bits_per_parameter"] for group in groups.values()} == {16}
    layer = model.model.layers[0]
    assert groups["experts"]["parameters"] == 2 * sum(weight.numel() for weight in layer.mlp.experts.parameters())
    assert groups["attention"]["parameters"] == 2 * sum(weight.numel() for weight in layer.self_attn.parameters())
    assert groups["router"]["parameters"] == 2 * layer.mlp.gate.weight.numel()
    assert list(groups) == ["embeddings", "attention", "experts", "router", "norms", "head", "total"]


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_plan_is_what_the_loaded_model_holds(folder, double_quant, dtype):
    from aurora.model.folder import meta_model

    settings = Quantization(bits=4, double_quant=double_quant, compute_dtype=dtype)
    model = load_model(folder, settings, device="cpu")
    plan = {name: size for name, _, size in planned_tensors(meta_model(folder), settings)}
    assert len(plan) == 2 + 1 + 2 * (4 + 2 + 1 + 2)
    for name, size in plan.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            tensors = [module.weight, state.absmax, state.code]
            tensors += [state.state2.absmax, state.state2.code, state.offset] if double_quant else []
            assert size == held(tensors), name
        else:
            part = getattr(module, attribute)
            assert size == held([part] if isinstance(part, torch.Tensor) else part.parameters()), name


def test_nf4_and_a_packed_folder_tell_the_same_experts(folder, tmp_path):
    settings = Quantization(bits=4, double_quant=True, compute_dtype="bfloat16")
    save_packed(load_model(folder, settings, device="cpu"), tmp_path / "packed")
    dense, plan, file = run(folder), run(folder, "--nf4"), run(tmp_path / "packed")
    assert file["experts"] == plan["experts"] and file == run(tmp_path / "packed", "--nf4")
    for name in dense:
        assert dense[name]["parameters"] == plan[name]["parameters"] == file[name]["parameters"]
    # A file holds, beside bitsandbytes' tables, a few words of description with each attention matrix.
    extra = file["attention"]["bytes"] - plan["attention"]["bytes"]
    described = [entry for name, entry in read_headers(tmp_path / "packed").items() if "bitsandbytes__nf4" in name]
    assert len(described) == 8 and extra == sum(entry.bytes for entry in described) - 8 * 4
    assert stored(tmp_path / "packed")["total"] == file["total"]


def test_the_true_model_by_arithmetic(tmp_path):
    """46.7 billion parameters, 22.8 GiB in all, experts at no more than 4.13 bits: no file is needed for it."""
    from aurora.model.folder import meta_model
    from aurora.model.sizes import planned

    MixtralConfig(dtype="bfloat16", architectures=["MixtralForCausalLM"]).save_pretrained(tmp_path)
    groups = planned(tmp_path, Quantization(bits=4, double_quant=True, compute_dtype="bfloat16"))
    assert groups["total"]["parameters"] == 46_702_792_704 == meta_model(tmp_path).num_parameters()
    assert groups["experts"]["bits_per_parameter"] <= 4.13
    assert 22.5 < groups["total"]["bytes"] / 2**30 < 23.0


@pytest.mark.parametrize(
    "name, group",
    [
        ("model.layers.3.block_sparse_moe.experts.1.w1.weight", "experts"),
        ("model.layers.3.mlp.experts.gate_up_proj.codes", "experts"),
        ("model.layers.3.mlp.shared_expert.up_proj.weight", "experts"),
        ("model.layers.3.block_sparse_moe.gate.weight", "router"),
        ("model.layers.3.self_attn.q_proj.weight.absmax", "attention"),
        ("model.layers.3.post_attention_layernorm.weight", "norms"),
        ("model.norm.weight", "norms"),
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "head"),
        ("model.vision.patch.weight", "other"),
    ],
)
def test_parts(name, group):
    assert group_of(name) == group


def test_the_table_and_one_line_of_error(folder, tmp_path):
    result = CliRunner().invoke(inspect, [str(folder)])
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["part", "parameters", "bytes", "GiB", "bits/parameter"]
    assert [line.split()[0] for line in lines][-1] == "total" and len({len(line) for line in lines}) == 1
    result = CliRunner().invoke(inspect, [str(tmp_path)])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
