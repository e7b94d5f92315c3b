"""The GGUF file under llama.cpp: its logits, and greedy replies of it and of the models beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import DataError, ModelError, ResourceError
from aurora.core.language import language
from aurora.core.parquet import read_parquet
from aurora.merge.params import Gguf

if TYPE_CHECKING:
    import torch
    from llama_cpp import Llama
    from transformers import PreTrainedModel

Samples = list[tuple[list[int], list[int]]]  # tokens, and the positions that are compared


@dataclass(frozen=True, slots=True)
class Prompts:
    """Held-out Chinese prompts as tokens, and how a reply to them ends."""

    tokens: list[list[int]]
    end: int
    max_new_tokens: int


def require_runtime() -> None:
    """Raises ResourceError, before anything is merged, where llama.cpp is not installed."""
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        raise ResourceError(
            "merge.drift.gguf needs llama.cpp: pip install -e '.[gguf]' -c constraints.txt, which builds it for some"
            " minutes; or set it to null"
        ) from None


def read_prompts(rows: Path, settings: Gguf, end: int) -> Prompts:
    """The first Chinese prompts of the held-out rows. Raises DataError if there is none."""
    table = read_parquet(rows, "format", ["prompt", "input_ids", "labels"])
    found = []
    for row in table.to_pylist():
        start = next((index for index, label in enumerate(row["labels"]) if label != -100), 0)
        if start and language(row["prompt"]) == "Chinese":
            found.append(row["input_ids"][:start])
    if not found:
        raise DataError(f"{rows}: no prompt is Chinese, so there is no reply to compare; raise format.held_out")
    return Prompts(found[: settings.replies], end, settings.max_new_tokens)


def replies_of(model: "PreTrainedModel", prompts: Prompts) -> list[list[int]]:
    """Greedy replies of a transformers model, without the end token."""
    import torch

    device, replies = model.get_input_embeddings().weight.device, []
    for tokens in prompts.tokens:
        ids = torch.tensor([tokens], device=device)
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=prompts.max_new_tokens,
            do_sample=False,
            eos_token_id=prompts.end,
            pad_token_id=prompts.end,
        )[0, len(tokens) :].tolist()
        replies.append(found[: found.index(prompts.end)] if prompts.end in found else found)
    return replies


def open_gguf(path: Path, context: int) -> "Llama":
    """llama.cpp over a GGUF file, on the CPU or what it was built for. Raises ModelError where it does not load."""
    from llama_cpp import Llama

    try:
        return Llama(str(path), n_ctx=context, logits_all=True, n_gpu_layers=-1, seed=0, verbose=False)
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"{path}: llama.cpp does not load it ({error})") from None


def gguf_logits(llama: "Llama", samples: Samples) -> list["torch.Tensor"]:
    """Float32 logits (positions, vocabulary) of each sample."""
    import torch

    found = []
    for tokens, places in samples:
        llama.reset()
        llama.eval(tokens)
        found.append(torch.from_numpy(llama.scores[places].copy()))
    return found


def gguf_replies(llama: "Llama", prompts: Prompts) -> list[list[int]]:
    """Greedy replies of llama.cpp, without the end token."""
    replies: list[list[int]] = []
    for tokens in prompts.tokens:
        reply: list[int] = []
        for token in llama.generate(tokens, temp=0.0, repeat_penalty=1.0, reset=True):
            if token == prompts.end or len(reply) == prompts.max_new_tokens:
                break
            reply.append(token)
        replies.append(reply)
    return replies


def zh_reply_rate(texts: Sequence[str]) -> float | None:
    """Share of the replies that are Chinese, counted as eval counts it; None where all are without any language."""
    kinds = [kind for text in texts if (kind := language(text)) != "none"]
    return kinds.count("Chinese") / len(kinds) if kinds else None
