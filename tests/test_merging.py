"""Our merge against PEFT's, and every adapter or base that does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from aurora.adapter import read_deltas
from aurora.errors import ModelError
from aurora.merging import merge
from aurora.shards import read_shards

CONFIG = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def folders(request, tmp_path_factory) -> tuple[Path, Path]:
    """A sharded base and an adapter with random A and B."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    model = MixtralForCausalLM(MixtralConfig(**CONFIG)).to(getattr(torch, request.param))
    model.save_pretrained(path / "base", max_shard_size="200KB")
    tuned = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    )
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(path / "adapter")
    return path / "base", path / "adapter"


def copy(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Both folders again, to be damaged."""
    for name, folder in zip(("base", "adapter"), folders, strict=True):
        shutil.copytree(folder, tmp_path / name)
    return tmp_path / "base", tmp_path / "adapter"


def test_every_tensor_equals_peft_s_merge_bit_for_bit(folders, tmp_path: Path):
    base, adapter = folders
    metrics = merge(base, adapter, tmp_path / "merged")
    model = MixtralForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(tmp_path / "peft")
    ours, theirs = ({}, {})
    for found, folder in ((ours, tmp_path / "merged"), (theirs, tmp_path / "peft")):
        for file in sorted(folder.glob("*.safetensors")):
            found |= load_file(file)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics["tensors_changed"] == 4
    assert metrics["shards"] > metrics["shards_changed"]


def test_the_folder_has_the_base_s_form_and_loads(folders, tmp_path: Path):
    base, adapter = folders
    merge(base, adapter, tmp_path / "merged")
    assert read_shards(tmp_path / "merged") == read_shards(base)
    for shard in read_shards(base):
        with safe_open(base / shard, "pt") as a, safe_open(tmp_path / "merged" / shard, "pt") as b:
            assert a.metadata() == b.metadata()
    tokens = torch.arange(1, 60).view(1, -1)
    model = MixtralForCausalLM.from_pretrained(base, dtype="float32")
    tuned = PeftModel.from_pretrained(model, adapter)
    merged = MixtralForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, tuned(tokens).logits, atol=2e-2, rtol=2e-2)


def test_a_merge_twice_gives_the_same_bytes(folders, tmp_path: Path):
    for name in ("one", "two"):
        merge(*folders, tmp_path / name)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def refused(base: Path, adapter: Path, out: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        merge(base, adapter, out)
    assert not out.exists()
    assert not list(out.parent.glob(".*partial*"))


def test_an_adapter_that_does_not_fit_is_refused(folders, tmp_path: Path):
    base, adapter = copy(folders, tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    bad = dict(weights)
    bad[name] = torch.zeros(4, 32)
    save_file(bad, adapter / "adapter_model.safetensors")
    refused(base, adapter, tmp_path / "out", "another base")
    bad[name] = torch.full((4, 64), float("nan"))
    save_file(bad, adapter / "adapter_model.safetensors")
    refused(base, adapter, tmp_path / "out", "not finite")
    save_file(
        {key.replace("layers.0", "layers.7"): value for key, value in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    refused(base, adapter, tmp_path / "out", r"layers\.7.* is not a tensor of")
    save_file(
        {key: value for key, value in weights.items() if key != name}, adapter / "adapter_model.safetensors"
    )
    refused(base, adapter, tmp_path / "out", "has only LoRA B")
    save_file(
        weights | {"base_model.model.lm_head.weight": torch.zeros(1)}, adapter / "adapter_model.safetensors"
    )
    refused(base, adapter, tmp_path / "out", "would be lost")


@pytest.mark.parametrize("field", ["use_dora", "bias", "modules_to_save"])
def test_what_cannot_be_merged_is_refused_by_name(folders, tmp_path: Path, field: str):
    base, adapter = copy(folders, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config[field] = {"use_dora": True, "bias": "all", "modules_to_save": ["lm_head"]}[field]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    refused(base, adapter, tmp_path / "out", field)


def test_patterns_and_rslora_scale_as_peft_does(folders, tmp_path: Path):
    _, adapter = copy(folders, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"use_rslora": True, "alpha_pattern": {"q_proj": 32}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    scales = {name: delta.scale for name, delta in read_deltas(adapter).items()}
    assert scales["model.layers.0.self_attn.q_proj.weight"] == 32 / 4**0.5
    assert scales["model.layers.0.self_attn.v_proj.weight"] == 8 / 4**0.5


def test_a_damaged_base_is_refused(folders, tmp_path: Path):
    base, adapter = copy(folders, tmp_path)
    shard = sorted(base.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    refused(base, adapter, tmp_path / "out", "truncated or damaged")
    shard.unlink()
    refused(base, adapter, tmp_path / "out", "missing, though")
    shard.write_bytes(content)
    index = base / "model.safetensors.index.json"
    text = json.loads(index.read_text())
    text["weight_map"]["model.none.weight"] = shard.name
    index.write_text(json.dumps(text))
    refused(base, adapter, tmp_path / "out", "model.none.weight is not in")
