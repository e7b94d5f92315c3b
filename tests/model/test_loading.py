"""The loader against transformers' own dense model with the dequantised weights, and against broken folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from stand_ins.tiny_mixtral import DENSE, NF4, SHAPE
from stand_ins.zoo import build, write_base
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from aurora.core.errors import ModelError, ResourceError
from aurora.model import loading as module
from aurora.model.folder import meta_model
from aurora.model.loading import load_model, load_tokenizer, prove_packed
from aurora.model.nf4 import PackedExperts
from aurora.model.packing import save_packed
from aurora.model.quantization import Quantization
from aurora.pipeline.params import load_params
from aurora.prompt.chat_template import ChatTemplate

SMALL = SHAPE | {
    "vocab_size": 256,
    "intermediate_size": 96,
    "num_local_experts": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small Mixtral in bfloat16, in several shards."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mixtral")
    MixtralForCausalLM(MixtralConfig(**SMALL)).to(torch.bfloat16).save_pretrained(path, max_shard_size="100KB")
    assert len(list(path.glob("*.safetensors"))) > 3
    return path


@pytest.fixture
def packed(folder) -> MixtralForCausalLM:
    return load_model(folder, NF4, device="cpu")


def dequantised(packed, folder, dtype=torch.float32) -> MixtralForCausalLM:
    """transformers' own model, its experts eager, with the weights that the packed one stands for."""
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()
    for ours, theirs in zip(packed.model.layers, dense.model.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            store = getattr(ours.mlp.experts, name)
            getattr(theirs.mlp.experts, name).data = torch.stack([store.dense(expert) for expert in range(8)])
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = getattr(ours.self_attn, name).weight
            getattr(theirs.self_attn, name).weight.data = bnb.dequantize_4bit(weight.data, weight.quant_state)
    return dense


def batch(padding: str | None = None) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 256, (3, 21), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((21, 14, 5) if padding else ()):
        mask[row, length:] = 0
    if padding == "left":
        mask = mask.flip(1)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_loss_and_logits_are_those_of_dense_weights(packed, folder, padding):
    dense = dequantised(packed, folder)
    with torch.no_grad():
        ours, theirs = packed(**batch(padding)), dense(**batch(padding))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)


def test_bfloat16_gives_the_bits_of_dense_weights(folder):
    """transformers' grouped_mm sums as we do; float32 is near wherever no token is routed otherwise."""
    half = load_model(folder, Quantization(bits=4, double_quant=True, compute_dtype="bfloat16"), device="cpu")
    dense = dequantised(half, folder, torch.bfloat16)
    dense.set_experts_implementation("grouped_mm")
    with torch.no_grad():
        ours, theirs = half(**batch()).logits, dense(**batch()).logits
        exact = dequantised(load_model(folder, NF4, device="cpu"), folder)(**batch()).logits
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, theirs)
    assert ((ours.float() - exact).norm(dim=-1) / exact.norm(dim=-1)).median() < 0.02


def with_lora(model) -> PeftModel:
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


def gradients(model, **options) -> dict[str, torch.Tensor]:
    if options:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model.enable_input_require_grads()
        model.train()
    inputs = batch("right")
    embedded = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    model(inputs_embeds=embedded, **inputs).loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return found | {"inputs": embedded.grad}


@pytest.mark.parametrize("options", [{}, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
def test_input_and_lora_gradients_are_those_of_dense_weights(packed, folder, options):
    theirs = gradients(with_lora(dequantised(packed, folder)))
    ours = gradients(with_lora(packed), **options)
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 2 * 2 + 1
    for name, gradient in ours.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-7, msg=name)


def test_float16_trains_as_the_paper_does(folder):
    """fp16 autocast over float16 weights, float32 LoRA, a scaled loss, checkpointing: gradients near to float32's."""
    half = load_model(folder, Quantization(bits=4, double_quant=True, compute_dtype="float16"), device="cpu")
    assert {weight.dtype for weight in half.parameters()} == {torch.uint8, torch.float32, torch.float16}
    theirs = gradients(with_lora(dequantised(half, folder).float()))
    ours = with_lora(half)
    assert {weight.dtype for weight in ours.parameters() if weight.requires_grad} == {torch.float32}
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ours.enable_input_require_grads()
    ours.train()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = ours(**batch("right")).loss
    (loss * 2.0**10).backward()
    for name, weight in ours.named_parameters():
        if weight.requires_grad:
            assert weight.grad.dtype == torch.float32
            error = (weight.grad / 2**10 - theirs[name]).norm() / theirs[name].norm()
            assert error < 0.1, (name, error)


def test_greedy_tokens_are_those_of_dense_weights(packed, folder):
    inputs = batch("left")
    del inputs["labels"]
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    ours, theirs = (packed.generate(**inputs, **options), dequantised(packed, folder).generate(**inputs, **options))
    assert ours.shape == (3, 61) and torch.equal(ours, theirs)
    assert len(ours[:, 21:].unique()) > 5


def test_everything_else_keeps_full_precision(packed):
    assert sum(isinstance(layer, Linear4bit) for layer in packed.modules()) == 4 * 2
    assert sum(isinstance(layer, PackedExperts) for layer in packed.modules()) == 2 * 2
    for name, weight in packed.named_parameters():
        if any(part in name for part in ("embed_tokens", "lm_head", "norm", "mlp.gate.")):
            assert weight.dtype == torch.float32, name


@pytest.mark.parametrize("name", ["experts.gate_up_proj", "self_attn.q_proj"])
def test_a_dense_matrix_is_found_and_named(packed, name):
    layer = packed.model.layers[1]
    if name.startswith("experts"):
        delattr(layer.mlp.experts, "gate_up_proj")
        layer.mlp.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(8, 192, 64))
    else:
        layer.self_attn.q_proj = torch.nn.Linear(64, 64, bias=False)
    with pytest.raises(ModelError, match=rf"model\.layers\.1\..*{name.split('.')[1]}.* is torch.float32"):
        prove_packed(packed, Path("here"))


def test_bits_16_and_32_are_dense(folder):
    for bits, dtype in ((16, torch.bfloat16), (32, torch.float32)):
        model = load_model(folder, Quantization(bits=bits, double_quant=True, compute_dtype="float32"), device="cpu")
        assert {weight.dtype for weight in model.parameters()} == {dtype}


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_packed_checkpoint_is_bit_identical(folder, tmp_path, double_quant):
    settings = Quantization(bits=4, double_quant=double_quant, compute_dtype="float32")
    first = load_model(folder, settings, device="cpu")
    save_packed(first, tmp_path / "packed")
    assert sorted(path.suffix for path in (tmp_path / "packed").iterdir()) == [".json", ".json", ".safetensors"]
    second = load_model(tmp_path / "packed", settings, device="cpu")
    before, after = first.state_dict(), second.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert [name for name, weight in second.named_parameters() if "experts" in name and weight.requires_grad] == []
    with torch.no_grad():
        assert torch.equal(first(**batch()).logits, second(**batch()).logits)
    gradients(with_lora(second))
    save_packed(load_model(tmp_path / "packed", settings, device="cpu"), tmp_path / "again")
    one, two = (tmp_path / name / "model.safetensors" for name in ("packed", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_a_packed_checkpoint_wants_the_settings_it_was_packed_with(folder, packed, tmp_path):
    save_packed(packed, tmp_path / "packed")
    with pytest.raises(ModelError, match=r"packed in 4 bits, quantization.bits is 32"):
        load_model(tmp_path / "packed", DENSE, device="cpu")
    with pytest.raises(ModelError, match=r"double_quant True, params.yaml says False"):
        load_model(tmp_path / "packed", NF4.model_copy(update={"double_quant": False}), device="cpu")
    with pytest.raises(ModelError, match="only a model loaded in 4 bits"):
        save_packed(load_model(folder, DENSE, device="cpu"), tmp_path / "dense")
    with pytest.raises(ModelError, match="belongs to an adapter"):
        save_packed(with_lora(packed).base_model.model, tmp_path / "adapted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]


GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda held: held.pop(f"{GATE_UP}.codes"), rf"{GATE_UP}.codes is missing"),
        (lambda held: held.pop(f"{GATE_UP}.offsets"), rf"{GATE_UP}.offsets is missing"),
        (lambda held: held.pop(f"{QUERY}.absmax"), rf"{QUERY}.absmax is missing"),
        (lambda held: held.pop(QUERY), rf"{QUERY} is missing"),
        (lambda held: held.update({"model.extra": torch.zeros(3)}), "model.extra is not a tensor of this packed"),
        (lambda held: held.update({f"{GATE_UP}.codes": held[f"{GATE_UP}.codes"][:7].clone()}), r"U8 \(7, 192, 32\)"),
        (
            lambda held: held.update({f"{GATE_UP}.scales": held[f"{GATE_UP}.scales"].float()}),
            "scales is F32 .*, not U8",
        ),
    ],
)
def test_a_broken_packed_checkpoint_is_named_in_one_line(packed, tmp_path, monkeypatch, change, told):
    save_packed(packed, tmp_path / "packed")
    file = tmp_path / "packed" / "model.safetensors"
    held = load_file(file)
    change(held)
    save_file(held, file, metadata={"format": "pt"})
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("it loaded"))
    with pytest.raises(ModelError, match=f"{told}.*; pack the 16-bit model again"):
        load_model(tmp_path / "packed", NF4, device="cpu")


def test_an_adapter_is_saved_and_resumed(folder, packed, tmp_path):
    adapted = with_lora(packed)
    with torch.no_grad():
        expected = adapted(**batch()).logits
    adapted.save_pretrained(tmp_path)
    resumed = PeftModel.from_pretrained(load_model(folder, NF4, device="cpu"), tmp_path, is_trainable=True)
    with torch.no_grad():
        assert torch.equal(resumed(**batch()).logits, expected)
    assert sum(weight.requires_grad for weight in resumed.parameters()) == 2 * 2 * 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trl_trains_it(packed, tmp_path, checkpointing):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": list(range(3, 40)), "labels": list(range(3, 40))}] * 4
    tokenizer = module_tokenizer(tmp_path)
    trainer = SFTTrainer(
        model=packed,
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=6,
            per_device_train_batch_size=2,
            learning_rate=2e-2,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            router_aux_loss_coef=0.0,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"]),
    )
    prove_packed(trainer.model, Path("trained"))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1


def module_tokenizer(path: Path):
    """A tokeniser of single bytes, enough for a collator."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<{number}>": number for number in range(3, 256)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), eos_token="</s>", bos_token="<s>"
    )
    tokenizer.save_pretrained(path)
    return load_tokenizer(path)


def test_the_tokeniser_pads_left_with_its_end_token(tmp_path):
    tokenizer = module_tokenizer(tmp_path)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("</s>", "left")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no tokeniser that loads"):
        load_tokenizer(tmp_path / "empty")


def test_a_folder_that_is_not_there_is_never_asked_of_the_hub(tmp_path, monkeypatch):
    def connect(*_):
        raise AssertionError("a connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    for load in (load_tokenizer, meta_model, ChatTemplate.of):
        with pytest.raises(ModelError, match=r"^nowhere.*(no such folder|not found)"):
            load(Path("nowhere"))


def test_another_mixture_of_experts_loads_packed(tmp_path):
    torch.manual_seed(0)
    names = {"num_local_experts": "num_experts", "intermediate_size": "moe_intermediate_size"}
    config = Qwen3MoeConfig(**{names.get(key, key): value for key, value in SMALL.items()}, head_dim=16)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, NF4, device="cpu")
    dense = dequantised(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, dense(**batch()).logits)


def test_there_is_one_loader(root):
    """Only aurora/model/loading.py takes weights from a folder; folder.py builds skeletons, small_base makes a model."""
    loaders = {
        path.relative_to(root).as_posix()
        for folder in ("aurora", "stages")
        for path in (root / folder).rglob("*.py")
        if re.search(r"^    .*ForCausalLM.from_pretrained", path.read_text(encoding="utf-8"), re.M)
    }
    assert loaders - {"aurora/report/adapter_card.py"} == {"aurora/model/loading.py"}  # a card shows how to load it
    users = {path.stem for path in (root / "aurora").rglob("*.py") if "import load_model" in path.read_text()}
    assert {"train", "evaluate"} <= users


# Bad input: one line each, and nothing is loaded.


def edit_config(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def edit_tensors(path: Path, change) -> None:
    """Writes the folder's tensors again as one file, after `change` of the dictionary."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (path / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


W1 = "model.layers.1.block_sparse_moe.experts.{}.w1.weight"
DOWN = "model.layers.0.block_sparse_moe.experts.5.w2.weight"


def break_it(path: Path, kind: str) -> None:
    shards = sorted(path.glob("*.safetensors"))
    if kind == "no config":
        (path / "config.json").unlink()
    elif kind == "config is no JSON":
        (path / "config.json").write_text("{")
    elif kind == "another kind of model":
        edit_config(path, model_type="nothing_known")
    elif kind == "missing expert":
        edit_tensors(path, lambda tensors: tensors.pop(W1.format(3)))
    elif kind == "extra expert":
        edit_tensors(path, lambda tensors: tensors.update({W1.format(8): torch.zeros(96, 64)}))
    elif kind == "wrong shape of one expert":
        edit_tensors(path, lambda tensors: tensors.update({DOWN: torch.zeros(64, 95, dtype=torch.bfloat16)}))
    elif kind == "wrong shape of all experts":
        edit_config(path, intermediate_size=128)
    elif kind == "wrong shape of attention":
        edit_config(path, num_key_value_heads=4)
    elif kind == "missing norm":
        edit_tensors(path, lambda tensors: tensors.pop("model.norm.weight"))
    elif kind == "unknown tensor":
        edit_tensors(path, lambda tensors: tensors.update({"model.vision.weight": torch.zeros(2)}))
    elif kind == "dtype":
        edit_tensors(path, lambda tensors: tensors.update({DOWN: torch.zeros(64, 96, dtype=torch.int8)}))
    elif kind == "dtype float8":
        edit_tensors(path, lambda tensors: tensors.update({DOWN: torch.zeros(64, 96).to(torch.float8_e4m3fn)}))
    elif kind == "transformers 4 in 4 bits":
        edit_config(path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    elif kind == "gptq":
        edit_config(path, quantization_config={"quant_method": "gptq", "bits": 4})
    elif kind == "missing shard":
        shards[1].unlink()
    elif kind == "cut-off shard":
        shards[1].write_bytes(shards[1].read_bytes()[:-10])
    elif kind == "damaged shard":
        shards[1].write_bytes(b"x" * 100)
    elif kind == "pickle":
        for file in [*shards, path / "model.safetensors.index.json"]:
            file.unlink()
        (path / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    "kind, told",
    [
        ("no config", "config.json: not found"),
        ("config is no JSON", "config.json: not JSON"),
        ("another kind of model", "no language model that loads"),
        ("missing expert", r"layers\.1\..*experts.3.w1.weight is missing; config.json asks for 8 experts"),
        ("extra expert", r"layers\.1\..*experts.8.w1.weight is one too many; config.json asks for 8 experts"),
        ("wrong shape of one expert", r"layers\.0\..*experts.5.w2.weight is \(64, 95\), its sisters \(64, 96\)"),
        ("wrong shape of all experts", r"w\d.weight is \(.*\), which with its sisters is not \(8, .*\)"),
        ("wrong shape of attention", r"k_proj.weight is \(32, 64\), config.json asks for \(64, 64\)"),
        ("missing norm", "model.norm.weight is missing"),
        ("unknown tensor", "model.vision.weight is not a tensor of this mixtral"),
        ("dtype", "experts.5.w2.weight is I8, which NF4 cannot hold"),
        ("dtype float8", "experts.5.w2.weight is F8_E4M3, which NF4 cannot hold"),
        ("transformers 4 in 4 bits", "a 4-bit checkpoint of bitsandbytes .* take the 16-bit model"),
        ("gptq", "already quantised by gptq; take the 16-bit model"),
        ("missing shard", "missing, though model.safetensors.index.json names it"),
        ("cut-off shard", "bytes, its header says"),
        ("damaged shard", "truncated or damaged"),
        ("pickle", "pytorch_model.bin, a pickle, which is not read"),
    ],
)
def test_a_broken_folder_is_named_in_one_line(folder, tmp_path, monkeypatch, kind, told):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    break_it(broken, kind)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("it loaded"))
    with pytest.raises(ModelError, match=told) as caught:
        load_model(broken, NF4, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def linear_weights(model) -> dict[str, torch.Tensor]:
    """The dequantised weight of every Linear4bit."""
    return {
        f"{name}.weight": bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        for name, layer in model.named_modules()
        if isinstance(layer, Linear4bit)
    }


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text", "phi3"])
def test_a_dense_model_loads_in_4_bits_as_bitsandbytes_packs_it(tmp_path, kind):
    folder = write_base(tmp_path, kind)
    ours = load_model(folder, NF4, device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    weights = linear_weights(stock)
    assert len(weights) >= 8
    for name, weight in weights.items():
        dense.get_parameter(name).data = weight
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, dense(ids).logits)
    for bits, dtype in ((16, torch.bfloat16), (32, torch.float32)):
        held = load_model(folder, NF4.model_copy(update={"bits": bits}), device="cpu")
        assert {weight.dtype for weight in held.parameters()} == {dtype}


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe"])
def test_experts_that_lie_fused_on_disk_load_in_4_bits(tmp_path, kind):
    model = build(kind)
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single, fused = (load_model(tmp_path / name, NF4, device="cpu")(ids).logits for name in ("single", "fused"))
    assert torch.equal(single, fused)


def test_experts_that_nf4_cannot_hold_are_told_with_the_remedy(tmp_path, monkeypatch):
    folder = write_base(tmp_path, "mixtral", hidden_size=36, intermediate_size=50, num_attention_heads=2)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("it loaded"))
    with pytest.raises(ModelError, match=r"gate_up_proj is \(4, 100, 36\), and NF4 .* quantization.bits: 16"):
        load_model(folder, NF4, device="cpu")


def test_experts_outside_the_interface_are_refused_in_4_bits_alone(tmp_path):
    folder = write_base(tmp_path, "llama4_text")
    with pytest.raises(ModelError, match=r"outside transformers' experts interface.*quantization\.bits: 16"):
        load_model(folder, NF4, device="cpu")
    load_model(folder, DENSE, device="cpu")


def test_a_device_too_small_is_told_before_loading_with_the_sum(folder, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 100_000)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("it loaded"))
    with pytest.raises(
        ResourceError,
        match=r"loading in 4 bits takes .* GiB held \+ .* GiB while .* = .* GiB, and cpu has 0.00 GiB free",
    ):
        load_model(folder, NF4, device="cpu")


def test_a_training_step_that_will_not_fit_is_told_before_loading(folder, monkeypatch):
    from aurora.sft.plan import Machine, Rows, check, plan

    sft = load_params(Path(__file__).parent.parent.parent / "params.yaml").sft
    short, long = (Rows(8, 8 * length, length, length, "rows") for length in (10, 3000))
    monkeypatch.setattr("aurora.sft.plan.machine", lambda: Machine("cpu", 0, 20 * 2**20))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("it loaded"))
    check(plan(sft, NF4, folder, short))
    with pytest.raises(ResourceError, match=r"training takes about 0\.\d\d GiB, and cpu has 0\.02 GiB free"):
        check(plan(sft, NF4, folder, long))


# Long ones.

PEAK = """
import json, sys, threading, time
from pathlib import Path
from aurora.model.loading import load_model
from aurora.model.quantization import Quantization
import torch, transformers, aurora.model.packing
torch.set_num_threads(1)

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

settings = Quantization(bits=4, double_quant=True, compute_dtype="bfloat16")
load_model(Path(sys.argv[2]), settings, device="cpu")  # what is imported once is no part of the peak
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
model = load_model(Path(sys.argv[1]), settings, device="cpu")
done.set()
print(json.dumps({"peak": peak[0] - before, "held": anonymous() - before}))
"""


@pytest.mark.slow
def test_peak_memory_of_loading_two_gigabytes(folder, tmp_path):
    """Measured as a process of its own: the packed model, one tensor's arrival, and little else."""
    from aurora.model.folder import meta_model, read_headers
    from aurora.model.sizes import held_bytes, largest_arrival

    sizes = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 12}
    config = MixtralConfig(**{**SMALL, **sizes, "num_attention_heads": 8}, dtype="bfloat16")
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(tmp_path)
    matrix = torch.randn(3584, 1024).bfloat16()
    kinds = {"w1": matrix, "w3": matrix, "w2": matrix.T.contiguous()}
    square, key = torch.randn(1024, 1024).bfloat16(), torch.randn(256, 1024).bfloat16()
    listed = {}

    def shard(file: str, tensors: dict) -> None:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / file)
        listed.update(dict.fromkeys(tensors, file))

    for number in range(12):
        layer = f"model.layers.{number}"
        tensors = {f"{layer}.block_sparse_moe.experts.{e}.{w}.weight": kinds[w] for e in range(8) for w in kinds}
        tensors |= {f"{layer}.self_attn.{p}_proj.weight": square for p in "qo"}
        tensors |= {f"{layer}.self_attn.{p}_proj.weight": key for p in "kv"}
        tensors |= {f"{layer}.{norm}_layernorm.weight": square[0] for norm in ("input", "post_attention")}
        shard(f"layer-{number}.safetensors", tensors | {f"{layer}.block_sparse_moe.gate.weight": square[:8]})
    table = torch.randn(4096, 1024).bfloat16()
    shard(
        "rest.safetensors", {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": key[0]}
    )
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    dense = sum(entry.bytes for entry in read_headers(tmp_path).values())
    assert dense > 2e9
    command = [sys.executable, "-c", PEAK, str(tmp_path), str(folder)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    settings = Quantization(bits=4, double_quant=True, compute_dtype="bfloat16")
    skeleton = meta_model(tmp_path)
    held, arrival = held_bytes(skeleton, settings), largest_arrival(tmp_path, skeleton, settings)
    print({"dense": dense, "held by arithmetic": held, "largest arrival": arrival, **measured})
    assert measured["held"] < held + 30e6
    assert measured["peak"] < held + arrival + 60e6  # a dense layer would be 176e6


@pytest.mark.slow
def test_the_true_shape_on_this_machine():
    """One Mixtral-8x7B layer's experts, forward and backward, against arithmetic on a few tokens."""
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    from aurora.model.experts import IMPLEMENTATION
    from aurora.model.packing import register

    register()
    torch.manual_seed(0)
    config = MixtralConfig()
    config._experts_implementation = IMPLEMENTATION
    with torch.device("meta"):
        experts = MixtralExperts(config)
    held = 0
    for name in ("gate_up_proj", "down_proj"):
        shape = tuple(getattr(experts, name).shape)
        delattr(experts, name)
        store = PackedExperts(shape, True, torch.bfloat16, "cpu")
        matrix = (torch.randn(shape[1:]) * 0.02).bfloat16()
        for expert in range(8):
            store.put(expert, [matrix.roll(expert, dims=0)])
        experts.add_module(name, store)
        held += sum(tensor.numel() * tensor.element_size() for tensor in store.parameters())
    bits = 8 * held / (3 * 8 * 4096 * 14336)
    print({"bytes a layer": held, "bits a parameter": bits, "GiB of 32 layers": 32 * held / 2**30})
    assert bits < 4.13
    hidden = torch.randn(6, 4096).bfloat16().requires_grad_()
    index, weights = torch.tensor([[0, 7]] * 3 + [[7, 3]] * 3), torch.full((6, 2), 0.5)
    result = experts(hidden, index, weights)
    result.float().sum().backward()
    row = hidden.detach()[0].float().requires_grad_()
    expected = 0
    for expert in (0, 7):
        gate, up = (experts.gate_up_proj.dense(expert).float() @ row).chunk(2)
        expected += experts.down_proj.dense(expert).float() @ (torch.nn.functional.silu(gate) * up) / 2
    expected.sum().backward()
    assert (result[0].float() - expected).norm() < 0.01 * expected.norm()
    assert (hidden.grad[0].float() - row.grad).norm() < 0.01 * row.grad.norm()


DISTRIBUTED = """
import json, os, sys, torch
from pathlib import Path
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer
from aurora.model.loading import load_model, load_tokenizer, prove_packed
from aurora.model.quantization import Quantization
folder, out, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
rows = [{"input_ids": [(7 * row + 3 * i) % 250 + 3 for i in range(24)]} for row in range(8)]
rows = [{**row, "labels": row["input_ids"]} for row in rows]
trainer = SFTTrainer(
    model=load_model(folder, Quantization(bits=4, double_quant=True, compute_dtype="float32")),
    args=SFTConfig(output_dir=out, max_steps=3, per_device_train_batch_size=batch, learning_rate=1e-2,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}, seed=7,
        router_aux_loss_coef=0.0, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, dataloader_pin_memory=False),
    train_dataset=Dataset.from_list(rows), processing_class=load_tokenizer(folder),
    peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
for weight in trainer.model.parameters():
    if weight.requires_grad:
        weight.data = weight.data.float()
prove_packed(trainer.model, folder)
trainer.train()
state = {name: weight for name, weight in trainer.model.state_dict().items() if "lora_" in name}
torch.save(state, f"{out}/{os.environ.get('RANK', 'single')}.pt")
if os.environ.get("RANK", "0") == "0":
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    Path(out, "outcome.json").write_text(json.dumps({"losses": losses, "world": trainer.args.world_size}))
"""


@pytest.mark.slow
def test_two_processes_train_as_one(folder, tmp_path):
    """DistributedDataParallel over gloo: the same adapter on both ranks, and that of one process."""
    whole = tmp_path / "model"
    shutil.copytree(folder, whole)
    module_tokenizer(whole)
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # what accelerate launch calls
    outcomes = {}
    for name, options, size in (("two", launch, "2"), ("one", [], "4")):
        (tmp_path / name).mkdir()
        command = [sys.executable, *options, str(script), str(whole), str(tmp_path / name), size]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        outcomes[name] = json.loads((tmp_path / name / "outcome.json").read_text())
    assert outcomes["two"]["world"] == 2 and outcomes["one"]["world"] == 1
    first, second = (torch.load(tmp_path / "two" / f"{rank}.pt") for rank in (0, 1))
    single = torch.load(tmp_path / "one" / "single.pt")
    assert first.keys() == single.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        torch.testing.assert_close(weight, single[name], rtol=1e-3, atol=1e-4, msg=name)
    assert outcomes["two"]["losses"] == pytest.approx(outcomes["one"]["losses"], rel=1e-3)
