"""The one loader of models and tokenisers: sft, eval and chat all come through here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch

from aurora.errors import ModelError
from aurora.experts import IMPLEMENTATION, PackedExperts, is_fused, pack, packed_experts_forward
from aurora.params import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def load_model(folder: Path, quantization: Quantization, *, device: str | None = None) -> "PreTrainedModel":
    """Loads a Hugging Face folder onto one device, in 4 bits or dense, in evaluation mode.

    With bits 4 the experts are packed as they arrive, so that the peak is the packed model and one dense layer,
    and attention becomes bitsandbytes' Linear4bit; router, norms, embeddings and head keep the compute dtype.
    Raises ModelError for a folder that is no such model, for missing, extra or misshapen tensors, and if any
    expert or attention matrix is still floating point afterwards.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; the folder is written by: dvc repro")
    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    dense_type = {4: quantization.compute_dtype, 16: "bfloat16", 32: "float32"}[quantization.bits]
    options = {"dtype": getattr(torch, dense_type), "device_map": {"": device}, "output_loading_info": True}
    try:
        config = AutoConfig.from_pretrained(folder)
        if quantization.bits == 4:
            ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, packed_experts_forward)
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=quantization.double_quant,
                bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
                llm_int8_skip_modules=["lm_head"],
            )
            with _packing_on_arrival(quantization.double_quant):
                model, report = AutoModelForCausalLM.from_pretrained(folder, config=config, **options)
            model.set_experts_implementation(IMPLEMENTATION)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(folder, config=config, **options)
            model.set_experts_implementation("grouped_mm")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: does not load ({error})") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            names = sorted(str(name) for name in report[kind])
            raise ModelError(f"{folder}: {kind.replace('_', ' ')}: {names[0]} and {len(names) - 1} more; fetch it again")
    if quantization.bits == 4:
        prove_packed(model, folder)
    return model.eval()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The folder's fast tokeniser; padding goes left with </s>, as generation needs it."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no tokeniser that loads ({error})") from None
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


@contextmanager
def _packing_on_arrival(double_quant: bool) -> Iterator[None]:
    """While active, transformers' loader hands each fused expert tensor to `pack` as soon as it is set."""
    from transformers import core_model_loading, modeling_utils

    original = core_model_loading.set_param_for_module

    def set_and_pack(model, target_name, *args, **kwargs):
        original(model, target_name, *args, **kwargs)
        path, _, name = target_name.rpartition(".")
        module = model.get_submodule(path) if path else model
        if is_fused(module, name):
            pack(module, name, double_quant)

    with (
        mock.patch.object(core_model_loading, "set_param_for_module", set_and_pack),
        # It would reserve the size of the dense model on the card.
        mock.patch.object(modeling_utils, "caching_allocator_warmup", lambda *args, **kwargs: None),
        # Read-ahead threads would hold many dense tensors at once.
        mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"}),
    ):
        yield


def prove_packed(model: torch.nn.Module, folder: Path) -> None:
    """Raises ModelError, naming the tensor, if an expert or attention matrix is floating point."""
    packed = sum(isinstance(module, PackedExperts) for module in model.modules())
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        matrix = "experts" in parts or any(part in ATTENTION for part in parts)
        if matrix and parameter.is_floating_point() and "lora_" not in name:
            raise ModelError(f"{folder}: {name} is {parameter.dtype} after loading in 4 bits; this must not be used")
    if packed == 0:
        raise ModelError(f"{folder}: no fused expert tensor was found to pack; is this a mixture of experts?")
