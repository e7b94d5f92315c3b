"""Loss on held-out rows: mean loss per answer token, on answers that the model was not trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from aurora.core.errors import DataError
from aurora.core.parquet import read_parquet
from aurora.eval.token_tree import Pass

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from aurora.eval.resume_cache import ResumeCache

SLICE = 1024  # positions whose logits are held in float32 together


def held_out_loss(
    model: "PreTrainedModel", path: Path, limit: int | None, batch_tokens: int, memory: "ResumeCache | None" = None
) -> float:
    """Mean negative log-likelihood in nats of each trained token, over the first `limit` rows of the file.

    Rows run end to end, each blind to the others, so that nothing is padded; where some layers do not attend to all
    tokens before (windows, recurrence), one after another. Logits are taken at trained positions only. Raises DataError
    if there is no trained token, or one that the model does not know.
    """
    import torch
    from tqdm import tqdm

    from aurora.eval.prefix import PassRunner
    from aurora.eval.resume_cache import computed, key_of
    from aurora.model.folder import has_plain_attention

    rows = read_parquet(path, "format", ["input_ids", "labels"]).slice(0, limit).to_pylist()
    check_tokens(rows, model, path)
    runner = PassRunner(model)
    packed = has_plain_attention(model.config)
    parts = [(batch, *pack(batch)) for batch in batches(rows, batch_tokens)]
    parts = [part for part in parts if len(part[3])]

    def losses(numbers: list[int]) -> Iterator[tuple[int, bytes]]:
        for number in tqdm(numbers, unit="batch", desc="held-out loss"):
            batch, step, targets, places = parts[number]
            logits = runner.run(step, places) if packed else one_by_one(model, batch)  # (N, vocabulary)
            wanted = torch.from_numpy(targets).to(logits.device)
            part = sum(
                torch.nn.functional.cross_entropy(some.float(), tokens, reduction="sum").item()
                for some, tokens in zip(logits.split(SLICE), wanted.split(SLICE), strict=True)
            )
            yield number, numpy.float64(part).tobytes()

    keys = [key_of("loss", step.tokens, step.ends, targets) for _, step, targets, _ in parts]
    values = computed(memory, keys, [len(step.tokens) for _, step, _, _ in parts], losses)
    total = sum(float(numpy.frombuffer(value, dtype=numpy.float64)[0]) for value in values)
    count = sum(len(targets) for _, _, targets, _ in parts)
    if not count:
        raise DataError(f"{path}: no row has a trained token, so there is no loss; raise format.held_out")
    return total / count


def check_tokens(rows: list[dict], model: "PreTrainedModel", path: Path) -> None:
    """Raises DataError for a token beyond the model's embeddings."""
    known = model.get_input_embeddings().num_embeddings
    largest = max((max(row["input_ids"], default=0) for row in rows), default=0)
    if largest >= known:
        raise DataError(
            f"{path}: token {largest} stands in a row, but the model knows {known}: rows and model are not of one"
            " tokeniser; write the rows again by: dvc repro format"
        )


def one_by_one(model: "PreTrainedModel", rows: list[dict]) -> "torch.Tensor":
    """Logits (N, vocabulary) at the positions in front of each row's trained tokens, row by row."""
    import torch

    found = []
    for row in rows:
        labels = torch.tensor(row["labels"], device=model.device)
        places = (labels[1:] != -100).nonzero()[:, 0]
        if len(places):
            ids = torch.tensor([row["input_ids"]], device=model.device)
            with torch.inference_mode():
                found.append(model(input_ids=ids, logits_to_keep=places, use_cache=False).logits[0])
    return torch.cat(found)


def batches(rows: list[dict], batch_tokens: int) -> Iterator[list[dict]]:
    """Consecutive rows of at most `batch_tokens` tokens together; a longer row is a batch of its own."""
    batch: list[dict] = []
    used = 0
    for row in rows:
        length = len(row["input_ids"])
        if batch and used + length > batch_tokens:
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += length
    if batch:
        yield batch


def pack(rows: list[dict]) -> tuple[Pass, numpy.ndarray, numpy.ndarray]:
    """A pass over whole rows, the trained tokens (N,) int64, and the positions (N,) whose logits predict them."""
    lengths = [len(row["input_ids"]) for row in rows]
    ends = numpy.cumsum(lengths)
    labels = numpy.concatenate([numpy.asarray(row["labels"], dtype=numpy.int64) for row in rows])
    labels[ends - lengths] = -100  # nothing predicts the first token of a row
    trained = numpy.flatnonzero(labels != -100)
    step = Pass(
        parent=None,
        depth=0,
        cache_length=0,
        tokens=numpy.concatenate([numpy.asarray(row["input_ids"], dtype=numpy.int32) for row in rows]),
        positions=numpy.concatenate([numpy.arange(length, dtype=numpy.int32) for length in lengths]),
        ends=numpy.repeat(ends, lengths).astype(numpy.int32),
        rows=numpy.empty(0, dtype=numpy.int32),
        places=numpy.empty(0, dtype=numpy.int32),
    )
    return step, labels[trained], trained - 1
