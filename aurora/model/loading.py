"""The one loader of models and tokenisers: sft, the drift of merge and eval all come through here."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aurora.core.errors import ModelError, ResourceError, out_of_memory
from aurora.core.files import remove
from aurora.model.experts import fused_tensors
from aurora.model.folder import (
    meta_model,
    quantised_linears,
    read_config,
    refuse_foreign_quantization,
    unquantised,
    verify,
    verify_packed,
)
from aurora.model.machine import GIB, default_device, free_memory
from aurora.model.quantization import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def load_model(folder: Path, quantization: Quantization, *, device: str | None = None) -> "PreTrainedModel":
    """Loads a Hugging Face folder, dense or packed, onto one device in evaluation mode.

    With bits 4 experts, if the model has any, are packed as they arrive, so that the peak is the packed model and one
    tensor of the checkpoint, and linear layers become bitsandbytes' Linear4bit; router, norms, embeddings and head take the compute dtype.
    `device` is by default this process's own card, or the CPU. The packed form of a large fetched folder is kept
    and read from then on (aurora/model/packed_cache.py). Raises ModelError for a folder that is no such
    model, for missing, extra or misshapen tensors and foreign quantisation, and if any expert or attention matrix
    is floating point afterwards; ResourceError, before anything is loaded, where the memory will not suffice.
    """
    from aurora.model.packed_cache import keep, place_of

    folder, device = Path(folder), device or default_device()
    place = place_of(folder, quantization, device)
    if place is not None and place.is_dir():
        try:
            return _load(place, quantization, device)
        except ModelError:  # damaged: the model itself is still there
            remove(place)
    model = _load(folder, quantization, device)
    if place is not None:
        keep(model, place)
    return model


def _load(folder: Path, quantization: Quantization, device: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    from aurora.model.allocator import release_heap
    from aurora.model.packing import PackingConfig, register

    settings = read_config(folder)
    refuse_foreign_quantization(folder, settings)
    packed = bool(settings.get("quantization_config"))
    if packed:
        _agree(folder, settings["quantization_config"], quantization)
    register()
    skeleton = meta_model(folder)
    if packed:
        verify_packed(folder, skeleton, quantization.double_quant)
    else:
        verify(folder, skeleton, packing=quantization.bits == 4)
    require_memory(folder, skeleton, quantization, device)
    dtype = {4: quantization.compute_dtype, 16: "bfloat16", 32: "float32"}[quantization.bits]
    options = {"dtype": getattr(torch, dtype), "device_map": {"": device}, "output_loading_info": True}
    config = skeleton.config
    if packed:
        config.quantization_config["compute_dtype"] = quantization.compute_dtype
        config.quantization_config["skip_modules"] = unquantised(skeleton)
    elif quantization.bits == 4:
        options["quantization_config"] = PackingConfig(
            quantization.double_quant, quantization.compute_dtype, unquantised(skeleton)
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(folder, config=config, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        if out_of_memory(error):
            raise ResourceError(f"{folder}: {device} ran out of memory while loading ({reason})") from None
        raise ModelError(f"{folder}: does not load ({reason}); fetch the model again") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            raise ModelError(
                f"{folder}: {kind.replace('_', ' ')}: {names[0]} and {len(names) - 1} more; fetch it again"
            )
    if quantization.bits == 4:
        prove_packed(model, folder)
    elif any(fused_tensors(model)):
        model.set_experts_implementation("grouped_mm")
    if device != "cpu":
        from aurora.model.fused import fuse

        fuse(model)
    release_heap()
    return model.eval()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The folder's fast tokeniser; padding goes left with </s>, as generation needs it."""
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():  # transformers would ask the hub for a model of this name
        raise ModelError(f"{folder}: no such folder; give one that holds a model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelError(f"{folder}: no tokeniser that loads ({reason}); fetch the model again") from None
    known = vocabulary_of(Path(folder))
    beyond = known is not None and (tokenizer.pad_token_id or 0) >= known  # some classes add one of their own
    tokenizer.pad_token = tokenizer.eos_token if beyond else tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def vocabulary_of(folder: Path) -> int | None:
    """Tokens that the folder's weights know, by its config; None where it says nothing."""
    if not (folder / "config.json").is_file():
        return None
    config = read_config(folder)
    return config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")


def prove_packed(model: torch.nn.Module, folder: Path) -> None:
    """Raises ModelError, naming the tensor, if an expert or a matrix that NF4 should hold is floating point."""
    fused = [name for name, _, _ in fused_tensors(model)]
    dense = quantised_linears(model)  # of those that are packed, torch's plain linear layer is gone
    for name in [*fused, *sorted(name for name in dense if "lora_" not in name)]:
        dtype = model.get_parameter(name).dtype
        raise ModelError(f"{folder}: {name} is {dtype} after loading in 4 bits; do not use this model")


def require_memory(folder: Path, skeleton: "PreTrainedModel", quantization: Quantization, device: str) -> None:
    """Raises ResourceError, with the sum, where `skeleton` and its largest tensor will not fit into the free memory.

    What a training step takes beside them is in `aurora.sft.plan`.
    """
    from aurora.model.sizes import held_bytes, largest_arrival

    held, arrival = held_bytes(skeleton, quantization), largest_arrival(folder, skeleton, quantization)
    free = free_memory(device)
    if free is not None and held + arrival > free:
        raise ResourceError(
            f"{folder}: loading in {quantization.bits} bits takes {held / GIB:.2f} GiB held + {arrival / GIB:.2f} GiB"
            " while the largest tensor arrives"
            f" = {(held + arrival) / GIB:.2f} GiB, and {device} has {free / GIB:.2f} GiB free; free memory, take a larger"
            " card, fewer quantization.bits or smaller batches"
        )


def _agree(folder: Path, packed: dict, quantization: Quantization) -> None:
    if quantization.bits != 4:
        raise ModelError(
            f"{folder}: packed in 4 bits, quantization.bits is {quantization.bits}; set it to 4, or take the 16-bit model"
        )
    if packed["double_quant"] != quantization.double_quant:
        raise ModelError(
            f"{folder}: packed with double_quant {packed['double_quant']}, params.yaml says {quantization.double_quant};"
            " change quantization.double_quant, or pack the 16-bit model again"
        )
