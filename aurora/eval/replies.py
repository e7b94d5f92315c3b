"""Greedy replies to held-out Chinese prompts, generated in batches, and what is measured on them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import DataError
from aurora.core.language import language
from aurora.core.parquet import read_parquet
from aurora.eval.answers import answer_metrics
from aurora.eval.language_confusion import pass_rates
from aurora.eval.overlap import overlap_metrics

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from aurora.eval.params import Replies
    from aurora.eval.resume_cache import ResumeCache

SHINGLE = 6  # characters; a repeated one is a sign of a loop


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out prompt, in the tokens in which the model was trained to see it."""

    id: str
    text: str
    tokens: list[int]  # up to the first token of the answer
    answer: list[int] = field(default_factory=list)  # as it was written, without its end token


def answer_prompts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    rows: Path,
    params: "Replies",
    max_length: int,
    memory: "ResumeCache | None" = None,
) -> tuple[dict[str, float | None], "pyarrow.Table"]:
    """Metrics, and a table of id, prompt, human answer, reply and language, of replies to held-out Chinese prompts.

    Raises DataError if no held-out prompt is Chinese.
    """
    import pyarrow

    most = max_length - params.max_new_tokens
    prompts = chinese_prompts(rows, params.prompts, most)
    if not prompts:
        raise DataError(
            f"{rows}: no prompt of up to {most} tokens is Chinese, so there is nothing to reply to; "
            "raise format.held_out, or lower eval.replies.max_new_tokens"
        )
    replies = greedy_replies(model, tokenizer, prompts, params.max_new_tokens, params.batch_size, memory)
    answers = [tokenizer.decode(prompt.answer, skip_special_tokens=True).strip() for prompt in prompts]
    table = pyarrow.table(
        {
            "id": [prompt.id for prompt in prompts],
            "prompt": [prompt.text for prompt in prompts],
            "answer": answers,
            "reply": replies,
            "language": [language(reply) for reply in replies],
        }
    )
    return reply_metrics(replies) | overlap_metrics(replies, answers) | answer_metrics(replies, answers), table


def chinese_prompts(rows: Path, count: int, max_tokens: int) -> list[Prompt]:
    """The first `count` Chinese prompts of held_out.parquet by id, each text once, none beyond `max_tokens`.

    An id is a hash of content, so that this is a random choice which further rows hardly change.
    """
    table = read_parquet(rows, "format", ["id", "prompt", "input_ids", "labels"])
    chosen: dict[str, Prompt] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["id"]):
        labels = row["labels"]
        start = next((index for index, label in enumerate(labels) if label != -100), 0)
        text = row["prompt"]
        if 0 < start <= max_tokens and text not in chosen and language(text) == "Chinese":
            end = next((index for index in range(start, len(labels)) if labels[index] == -100), len(labels))
            chosen[text] = Prompt(row["id"], text, row["input_ids"][:start], row["input_ids"][start : end - 1])
            if len(chosen) == count:
                break
    return list(chosen.values())


def greedy_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
    memory: "ResumeCache | None" = None,
) -> list[str]:
    """Replies in the order of the prompts, without special tokens."""
    ends = end_tokens(model, tokenizer)
    found = greedy_tokens(model, prompts, max_new_tokens, batch_size, ends, memory)
    return [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in found]


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> frozenset[int]:
    """The tokens at which a reply ends: the tokeniser's own, and all of the model's generation_config.json."""
    listed = model.generation_config.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    return frozenset({tokenizer.eos_token_id, *listed} - {None})


def greedy_tokens(
    model: "PreTrainedModel",
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
    ends: frozenset[int],
    memory: "ResumeCache | None" = None,
) -> list[list[int]]:
    """Tokens of each reply, in the order of the prompts and without its end; prompts of like length run together."""
    from tqdm import tqdm

    from aurora.eval.resume_cache import computed, key_of

    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index].tokens), prompts[index].id))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    tokens = [[prompts[index].tokens for index in batch] for batch in batches]

    def answers(numbers: list[int]) -> Iterator[tuple[int, bytes]]:
        with tqdm(total=sum(len(batches[number]) for number in numbers), unit="reply", desc="replies") as bar:
            for number in numbers:
                yield number, json.dumps(generate(model, tokens[number], max_new_tokens, ends)).encode()
                bar.update(len(batches[number]))

    keys = [key_of("replies", max_new_tokens, sorted(ends), asked) for asked in tokens]
    costs = [sum(map(len, asked)) + max_new_tokens * len(asked) for asked in tokens]
    replies: list[list[int]] = [[] for _ in prompts]
    for batch, value in zip(batches, computed(memory, keys, costs, answers), strict=True):
        for index, ids in zip(batch, json.loads(value), strict=True):
            replies[index] = ids
    return replies


def generate(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: frozenset[int]
) -> list[list[int]]:
    """Greedy tokens for each prompt, up to and without the first of `ends`, equal to transformers' `generate`.

    A finished row leaves the batch, where `generate` would carry it on until the longest one ends.
    """
    import torch
    from transformers import DynamicCache

    from aurora.eval.reply_cache import reply_cache
    from aurora.model.folder import is_recurrent

    device = model.device
    if is_recurrent(model.config):  # a state cannot leave the batch, nor pass over padding in every model
        return [_generate_one(model, tokens, max_new_tokens, ends) for tokens in prompts]
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long, device=device)  # (B, T), padded on the left
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(prompts):
        ids[row, width - len(tokens) :] = torch.tensor(tokens, device=device)
        mask[row, width - len(tokens) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    found: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    cache = reply_cache(model, DynamicCache())
    stop = torch.tensor(sorted(ends), device=device)
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen = logits.argmax(dim=-1)
            going = ~torch.isin(chosen, stop)
            for row, token in zip(alive, chosen.tolist(), strict=True):
                if token not in ends:
                    found[row].append(token)
            kept = going.nonzero()[:, 0]
            if not len(kept):
                break
            if len(kept) < len(alive):
                alive = [alive[index] for index in kept.tolist()]
                cache.batch_select_indices(kept)
                mask, positions, chosen = mask[kept], positions[kept], chosen[kept]
            ids = chosen[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return found


def _generate_one(
    model: "PreTrainedModel", tokens: Sequence[int], max_new_tokens: int, ends: frozenset[int]
) -> list[int]:
    import torch

    ids = torch.tensor([tokens], device=model.device)
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "use_cache": True}
    settings |= {"eos_token_id": sorted(ends), "pad_token_id": min(ends)}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(tokens) :].tolist()
    return [token for token in found if token not in ends]


def reply_metrics(replies: Sequence[str]) -> dict[str, float | None]:
    """Shares over the replies to Chinese prompts; those of `pass_rates` among them.

    `zh_reply_rate` is the share of replies in Chinese, and `mixed_rate` that of replies in a mixture, as
    `aurora.core.language.language` names them. A reply without any language, which is code, formulas or numbers alone,
    counts on neither side, but in `no_language`; an empty one counts as not Chinese. Both shares are None where no
    reply is left to judge. `repetition` is the mean share of a reply's
    six-character stretches that occurred in it before; `mean_length` is in characters.
    """
    kinds = Counter(map(language, replies))
    judged = len(replies) - kinds["none"]
    return {
        "zh_reply_rate": kinds["Chinese"] / judged if judged else None,
        "mixed_rate": kinds["mixed"] / judged if judged else None,
        "no_language": kinds["none"],
        "repetition": sum(map(repetition, replies)) / max(1, len(replies)),
        "mean_length": sum(map(len, replies)) / max(1, len(replies)),
        **pass_rates(replies),
    }


def repetition(text: str) -> float:
    """Share of the text's six-character stretches that occurred before; 0 for a text of at most six characters."""
    stretches = [text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)]
    return 1 - len(set(stretches)) / len(stretches) if stretches else 0.0
