"""How far the merged model is from what was trained: the adapter on the quantised base, logit by logit."""

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from aurora.core.errors import DataError, ModelError
from aurora.core.parquet import read_parquet
from aurora.lora.targets import PREFIX, find_targets
from aurora.merge.deltas import adapter_keys
from aurora.merge.gguf import require_tools, write_gguf
from aurora.merge.gguf_drift import (
    Prompts,
    Samples,
    gguf_logits,
    gguf_replies,
    open_gguf,
    read_prompts,
    replies_of,
    require_runtime,
    zh_reply_rate,
)
from aurora.merge.params import Drift
from aurora.model.quantization import Quantization

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def drift(base: Path, adapter: Path, merged: Path, rows: Path, settings: Drift, quantization: Quantization) -> dict:
    """Differences of logits to the adapter on the base, as `quantization` holds it in training.

    `adapter_effect` is what the adapter changes in that base, the measure for the other numbers; `merged_16_bits`
    (bfloat16, a layer at a time) and `merged_4_bits` (NF4) are the merged model. One model is in memory at a time,
    and twice the float32 logits of settings.rows x settings.positions x vocabulary. Raises DataError if there is no
    row to compare on.
    """
    from aurora.lora.attach import load_adapter
    from aurora.model.folder import meta_model
    from aurora.model.loading import load_model, load_tokenizer

    samples = read_samples(rows, settings)
    model = load_adapter(load_model(base, quantization), meta_model(base), adapter).eval()
    wanted = list(logits(model, samples, "adapter on the base"))
    with model.disable_adapter():
        result = {"adapter_effect": compare(wanted, logits(model, samples, "base"))}
    gguf, tokenizer, prompts, replies = settings.gguf, None, None, {}
    if gguf:
        tokenizer = load_tokenizer(base)
        prompts = read_prompts(rows, gguf, tokenizer.eos_token_id)
        replies["adapter"] = replies_of(model, prompts)
    del model
    release()
    found: list = []
    for bits in settings.merged_bits:
        found = merged_logits(merged, samples, bits, quantization)
        result[f"merged_{bits}_bits"] = compare(wanted, found)
        release()
    if gguf and prompts:
        replies["merged"] = replies_of(load_model(merged, quantization), prompts)
        release()
        beside, replies["gguf"] = gguf_drift(merged, samples, prompts, gguf.type, (wanted, found))
        result["gguf"] = beside | _replies(replies, tokenizer)
    return {"rows": len(samples), "positions": sum(len(places) for _, places in samples), **result}


def gguf_drift(
    merged: Path, samples: Samples, prompts: Prompts, kind: str, others: tuple[list, list]
) -> tuple[dict, list[list[int]]]:
    """The merged model as a GGUF file: its size and its logits beside those of the adapter and of the merged model.

    Also its greedy replies. The file is written beside the merged model, and gone afterwards.
    """
    with TemporaryDirectory(dir=merged.parent) as scratch:
        path = Path(scratch) / f"{kind}.gguf"
        write_gguf(merged, path, kind, "merged")
        longest = max(len(tokens) for tokens, _ in samples)
        asked = max(map(len, prompts.tokens)) + prompts.max_new_tokens
        llama = open_gguf(path, max(longest, asked) + 1)
        found = gguf_logits(llama, samples)
        beside = {name: compare(of, found) for name, of in zip(("adapter", "merged"), others, strict=True)}
        return {"bytes": path.stat().st_size, "beside": beside}, gguf_replies(llama, prompts)


def _replies(replies: dict[str, list[list[int]]], tokenizer: "PreTrainedTokenizerFast") -> dict:
    texts = {
        name: [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found]
        for name, found in replies.items()
    }
    equal = sum(mine == other for mine, other in zip(replies["merged"], replies["gguf"], strict=True))
    return {
        "zh_reply_rate": {name: zh_reply_rate(found) for name, found in texts.items()},
        "equal_replies": equal / len(replies["gguf"]),  # of the GGUF file and the merged model
    }


def require_room(base: Path, adapter: Path, settings: Drift, quantization: Quantization) -> None:
    """Raises an AuroraError, before anything is merged, where one of the models will not run here.

    ResourceError for too little memory; ModelError for an adapter that PEFT would put elsewhere than merge does.
    """
    from aurora.merge.streaming import is_streamable
    from aurora.model.folder import meta_model, read_config, refuse_foreign_quantization
    from aurora.model.loading import require_memory
    from aurora.model.machine import default_device

    if settings.gguf:
        require_tools(settings.gguf.type)
        require_runtime()
    refuse_foreign_quantization(base, read_config(base))
    skeleton = meta_model(base)
    whole = set(settings.merged_bits) - ({16} if is_streamable(base) else set())
    for bits in {quantization.bits} | whole:
        held = quantization.model_copy(update={"bits": bits})
        require_memory(base, skeleton, held, default_device())
    _require_same_places(adapter, skeleton)


def _require_same_places(adapter: Path, skeleton: "PreTrainedModel") -> None:
    # PEFT goes by the targets in the configuration, merge by the tensors; PEFT is silent where they differ.
    from peft import LoraConfig

    wanted = adapter_keys(adapter)
    try:
        config = LoraConfig.from_pretrained(adapter)
        targets = find_targets(skeleton, config, str(adapter))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ModelError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelError(
            f"{adapter}: PEFT does not load it ({reason}); train again, or set merge.drift: null"
        ) from None
    there = {target.key.removeprefix(PREFIX) for target in targets.found} | set(targets.trained_modules)
    for name in sorted(wanted ^ there):
        listed = "target_modules or modules_to_save of adapter_config.json but no"
        where = listed if name in there else "no target_modules but a"
        raise ModelError(f"{adapter}: {name} has {where} tensor; train again: dvc repro -f sft")


def merged_logits(
    merged: Path, samples: list[tuple[list[int], list[int]]], bits: int, quantization: Quantization
) -> list["torch.Tensor"]:
    """Logits of the merged model: whole, or in 16 bits layer by layer where its family allows that."""
    from aurora.merge.streaming import is_streamable, streamed_logits
    from aurora.model.loading import load_model
    from aurora.model.machine import default_device

    if bits == 16 and is_streamable(merged):
        return streamed_logits(merged, samples, default_device())
    model = load_model(merged, quantization.model_copy(update={"bits": bits}))
    return list(logits(model, samples, f"merged in {bits} bits"))


def read_samples(path: Path, settings: Drift) -> list[tuple[list[int], list[int]]]:
    """(tokens, positions) of the first held-out rows; a position is one that predicts a token of an answer."""
    samples = []
    table = read_parquet(path, "format", ["input_ids", "labels"])
    for row in table.slice(0, settings.rows).to_pylist():
        places = [place - 1 for place, label in enumerate(row["labels"]) if place and label != -100]
        places = places[: settings.positions]
        if places:
            samples.append((row["input_ids"][: places[-1] + 1], places))
    if not samples:
        raise DataError(f"{path}: no row has a trained token, so there is no drift; raise format.held_out")
    return samples


def logits(model: "PreTrainedModel", samples: list[tuple[list[int], list[int]]], what: str) -> Iterator["torch.Tensor"]:
    """Float32 logits (positions, vocabulary) of each sample, on the CPU."""
    import torch
    from tqdm import tqdm

    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        for tokens, places in tqdm(samples, desc=f"drift: {what}", unit="row"):
            keep = torch.tensor(places, device=device)
            output = model(input_ids=torch.tensor([tokens], device=device), logits_to_keep=keep, use_cache=False)
            yield output.logits[0].float().cpu()


def compare(wanted: list["torch.Tensor"], found: Iterable["torch.Tensor"]) -> dict:
    """Greatest and mean absolute difference of logits, mean KL divergence in nats from `wanted`, top-1 agreement.

    Raises ModelError where a logit of either is not finite.
    """
    max_abs, total, divergence, agreed, count, places = 0.0, 0.0, 0.0, 0, 0, 0
    for reference, other in zip(wanted, found, strict=True):
        difference = (reference - other).abs()
        if not difference.isfinite().all():
            which = "the adapter on the base" if not reference.isfinite().all() else "the model beside it"
            raise ModelError(f"drift: a logit of {which} is not finite; train again with a lower rate")
        max_abs = max(max_abs, difference.max().item())
        total += difference.double().sum().item()
        p, q = (tensor.double().log_softmax(dim=-1) for tensor in (reference, other))
        divergence += (p.exp() * (p - q)).sum().item()
        agreed += (reference.argmax(dim=-1) == other.argmax(dim=-1)).sum().item()
        count, places = count + difference.numel(), places + len(reference)
    return {
        "max_abs": max_abs,
        "mean": total / count,
        "kl_divergence": divergence / places,
        "top1_agreement": agreed / places,
    }


def release() -> None:
    """Frees what the last model held; its modules refer to each other in circles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
