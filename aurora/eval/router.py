"""What the router of a mixture of experts does: load of each expert, entropy, and the first choice for each token."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy

from aurora.eval.benchmarks import Subject
from aurora.eval.held_out import batches, pack
from aurora.eval.params import Benchmark

if TYPE_CHECKING:
    import pyarrow
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LANGUAGES = {"ceval": "Chinese", "cmmlu": "Chinese", "mmlu": "English"}  # of the questions of each benchmark


def router_statistics(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    subjects: dict[Benchmark, list[Subject]],
    limit: int,
    batch_tokens: int,
) -> tuple[dict | None, "pyarrow.Table"]:
    """Statistics of at most `limit` tokens of each language, and a table of the first choices, one row for each token.

    The texts are the questions of the benchmarks, one of each subject in turn, each behind <s>, which is not counted.
    For each language: `tokens`; `entropy` in nats, the mean over tokens and layers of that of the router's
    probabilities; `max_load`, the greatest share of choices that one expert of one layer has; `load` (layers,
    experts), the shares of the choices. The table has `language` and `top_expert`, a list of one expert for each layer.
    None, and a table without rows, for a model without a router.
    """
    import pyarrow

    schema = pyarrow.schema([("language", pyarrow.string()), ("top_expert", pyarrow.list_(pyarrow.uint8()))])
    gates = routers(model)
    if not gates:
        return None, schema.empty_table()
    statistics, columns = {}, {"language": [], "top_expert": []}
    for language, rows in token_rows(tokenizer, subjects, limit).items():
        logits = router_logits(model, gates, rows, batch_tokens)  # (L, T, E)
        statistics[language] = summary(logits, gates[0].top_k)
        columns["language"] += [language] * logits.shape[1]
        columns["top_expert"] += logits.argmax(axis=2).T.astype(numpy.uint8).tolist()
    return statistics, pyarrow.table(columns, schema=schema)


def routers(model: "PreTrainedModel") -> list["torch.nn.Module"]:
    """The routers of a model, by layer."""
    return [
        module
        for module in model.modules()
        if all(hasattr(module, name) for name in ("top_k", "num_experts", "weight"))
    ]


def token_rows(
    tokenizer: "PreTrainedTokenizerFast", subjects: dict[Benchmark, list[Subject]], limit: int
) -> dict[str, list[list[int]]]:
    """For each language the ids of questions, of which together at most `limit` tokens are counted."""
    found: dict[str, list[list[int]]] = {}
    for language in dict.fromkeys(LANGUAGES[name] for name in subjects):
        members = [subject.questions for name in subjects if LANGUAGES[name] == language for subject in subjects[name]]
        left, rows = limit, []
        for text in _in_turn(members):
            ids = tokenizer.encode(text, add_special_tokens=False)[:left]
            if not ids:
                break
            left -= len(ids)
            rows.append([tokenizer.bos_token_id, *ids])
        found[language] = rows
    return found


def _in_turn(members: Sequence[Sequence[dict]]) -> Iterator[str]:
    for number in range(max(map(len, members), default=0)):
        for questions in members:
            if number < len(questions):
                document = questions[number]
                yield document.get("question") or document["Question"]


def router_logits(
    model: "PreTrainedModel", gates: Sequence["torch.nn.Module"], rows: Sequence[Sequence[int]], batch_tokens: int
) -> numpy.ndarray:
    """(L, T, E) float32 logits of each layer's router at every token but the first of each row; rows are blind to
    each other."""
    from aurora.eval.prefix import PassRunner

    runner, parts = PassRunner(model), []
    examples = [{"input_ids": row, "labels": [-100] * len(row)} for row in rows]
    with recorded(gates) as outputs:
        for batch in batches(examples, batch_tokens):
            step, _, _ = pack(batch)
            outputs.clear()
            runner.run(step)
            counted = step.positions > 0
            parts.append(numpy.stack([logits[counted] for logits in outputs]))
    return numpy.concatenate(parts, axis=1)


@contextmanager
def recorded(gates: Sequence["torch.nn.Module"]) -> Iterator[list[numpy.ndarray]]:
    """Yields a list to which each router adds its logits (T, E) as it runs."""
    outputs: list[numpy.ndarray] = []

    def keep(_module: object, _arguments: object, result: tuple) -> None:
        outputs.append(result[0].float().cpu().numpy())

    hooks = [gate.register_forward_hook(keep) for gate in gates]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def summary(logits: numpy.ndarray, top_k: int) -> dict:
    """Statistics of logits (L, T, E), of which each token takes the `top_k` largest."""
    layers, tokens, experts = logits.shape
    values = logits.astype(numpy.float64)
    values -= values.max(axis=2, keepdims=True)
    probabilities = numpy.exp(values)
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    entropy = -(probabilities * numpy.log(numpy.maximum(probabilities, 1e-300))).sum(axis=2)
    chosen = numpy.argsort(-logits, axis=2, kind="stable")[:, :, :top_k]
    load = [numpy.bincount(chosen[layer].ravel(), minlength=experts) / (tokens * top_k) for layer in range(layers)]
    return {
        "tokens": tokens,
        "entropy": float(entropy.mean()),
        "max_load": float(numpy.max(load)),
        "load": [[round(float(share), 6) for share in shares] for shares in load],
    }
