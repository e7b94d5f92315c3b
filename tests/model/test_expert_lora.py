"""LoRA on experts in 4 bits, beside PEFT's own on transformers' dense model with the dequantised weights."""

import pytest
import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from stand_ins.live_bytes import LiveBytes
from stand_ins.tiny_mixtral import NF4
from stand_ins.zoo import write_base
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from aurora.lora.attach import ADAPTER, LoraPackedExperts, attach, is_packed, load_adapter, renamed
from aurora.lora.targets import Target, find_targets
from aurora.model.experts import IMPLEMENTATION, replace
from aurora.model.folder import meta_model
from aurora.model.loading import load_model
from aurora.model.nf4 import PackedExperts
from aurora.model.packing import register
from aurora.sft.params import Lora

pytestmark = pytest.mark.minutes

LORA = Lora(
    r=4,
    lora_alpha=8,
    lora_dropout=0.0,
    target_modules=("q_proj", "o_proj"),
    target_parameters=("gate_up_proj", "down_proj"),
)
ALONE = LORA.model_copy(update={"target_modules": (), "use_rslora": True})
ROUTER = LORA.model_copy(update={"target_parameters": ("gate_up_proj", "gate.weight")})
CASES = [("mixtral", LORA), ("mixtral", ALONE), ("mixtral", ROUTER), ("gpt_oss", LORA), ("qwen3_moe", LORA)]
IDS = ["mixtral", "experts alone", "router", "gpt_oss", "qwen3_moe"]


def dequantised(packed, folder):
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    dense.set_experts_implementation("eager")
    for name, module in packed.named_modules():
        if isinstance(module, PackedExperts):
            weight = torch.stack([module.dense(expert) for expert in range(module.shape[0])])
            dense.get_parameter(name).data = weight
        elif isinstance(module, Linear4bit):
            dense.get_parameter(f"{name}.weight").data = bnb.dequantize_4bit(
                module.weight.data, module.weight.quant_state
            )
    return dense


@pytest.mark.parametrize(("kind", "lora"), CASES, ids=IDS)
def test_gradients_logits_and_files_are_those_of_peft_on_dense_weights(kind, lora, tmp_path):
    base, adapter = write_base(tmp_path / "base", kind), tmp_path / "adapter"
    packed = load_model(base, NF4, device="cpu")
    dense = dequantised(packed, base)
    targets = find_targets(meta_model(base), lora.config(), "test")
    ours = attach(packed, targets)
    assert is_packed(ours) and sum(w.numel() for w in ours.parameters() if w.requires_grad) == targets.trainable
    theirs = get_peft_model(dense, lora.config())
    torch.manual_seed(5)
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1)
    theirs.save_pretrained(adapter)
    # The same weights on the packed model, read from PEFT's own file.
    ours = load_adapter(load_model(base, NF4, device="cpu"), meta_model(base), adapter)
    for name, weight in ours.named_parameters():
        weight.requires_grad_("lora_" in name)
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    for checkpointing in (False, True):
        if checkpointing:
            ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            ours.enable_input_require_grads()
            ours.train(), theirs.train()
        ours.zero_grad(), theirs.zero_grad()
        mine, other = ours(ids, labels=ids), theirs(ids, labels=ids)
        torch.testing.assert_close(mine.logits, other.logits, rtol=1e-4, atol=1e-4)
        mine.loss.backward()
        other.loss.backward()
        gradients = {name: w.grad for name, w in ours.named_parameters() if "lora_" in name}
        gradients = renamed({n.replace(".default", ""): g for n, g in gradients.items()}, targets, to_disk=True)
        expected = {n.replace(".default", ""): w.grad for n, w in theirs.named_parameters() if "lora_" in n}
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert gradient.abs().sum() > 0
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-6, msg=name)
    # What ours writes, stock PEFT loads onto the dense model.
    state = {n.replace(".default", ""): w.data for n, w in ours.named_parameters() if "lora_" in n}
    state = renamed(state, targets, to_disk=True)
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        assert torch.equal(state[name], tensor), name
    save_file({name: tensor * 2 for name, tensor in state.items()}, adapter / "adapter_model.safetensors")
    again = PeftModel.from_pretrained(dequantised(load_model(base, NF4, device="cpu"), base), adapter)
    doubled = load_adapter(load_model(base, NF4, device="cpu"), meta_model(base), adapter)
    with torch.no_grad():
        torch.testing.assert_close(doubled(ids).logits, again(ids).logits, rtol=1e-4, atol=1e-4)
        with doubled.disable_adapter(), again.disable_adapter():
            torch.testing.assert_close(doubled(ids).logits, again(ids).logits, rtol=1e-4, atol=1e-4)


def test_nothing_dense_lives_or_is_kept_for_backward():
    """Four wide experts with LoRA: the peak of a step stays below one dense tensor of the layer."""
    register()
    config = MixtralConfig(hidden_size=1024, intermediate_size=2048, num_local_experts=4)
    config._experts_implementation = IMPLEMENTATION
    with torch.device("meta"):
        experts = MixtralExperts(config)
    dense = 4 * 4096 * 1024 * 4  # bytes of gate_up_proj
    for name in ("gate_up_proj", "down_proj"):
        shape = tuple(getattr(experts, name).shape)
        store = PackedExperts(shape, True, torch.float32, "cpu")
        for expert in range(4):
            store.put(expert, [torch.randn(shape[1:]) * 0.02])
        target = Target(name, name, 8, 2.0, 4, is_parameter=True)
        setattr(experts, name, LoraPackedExperts(replace(experts, name, store), target, transposed=False))
        nn.init.normal_(getattr(experts, name).lora_B[ADAPTER].weight, std=0.1)
    hidden = torch.randn(16, 1024, requires_grad=True)
    weights, index = torch.randn(16, 4).softmax(-1).topk(2)
    with LiveBytes() as live:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            result = experts(hidden, index, weights)
        result.sum().backward()
    assert max(tensor.numel() for tensor in kept) <= max(w.numel() for w in experts.parameters() if w.requires_grad)
    assert live.peak < dense / 2
