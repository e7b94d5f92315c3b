"""Loss on held-out rows: mean loss per answer token, on answers that the model was not trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from aurora.core.errors import DataError
from aurora.core.parquet import read_parquet
from aurora.eval.token_tree import Pass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from aurora.eval.resume_cache import ResumeCache

SLICE = 1024  # positions whose logits are held in float32 together


def held_out_loss(
    model: "PreTrainedModel",
    path: Path,
    limit: int | None,
    batch_tokens: int,
    memory: "ResumeCache | None" = None,
) -> float:
    """Mean negative log-likelihood in nats of each trained token, over the first `limit` rows of the file.

    Rows run end to end, each blind to the others, so that nothing is padded; logits are taken at trained
    positions only. Raises DataError if there is no trained token.
    """
    import torch
    from tqdm import tqdm

    from aurora.eval.prefix import PassRunner
    from aurora.eval.resume_cache import key_of

    rows = read_parquet(path, "format", ["input_ids", "labels"]).slice(0, limit).to_pylist()
    runner = PassRunner(model)
    total, count = 0.0, 0
    for batch in tqdm(list(batches(rows, batch_tokens)), unit="batch", desc="held-out loss"):
        step, targets, places = pack(batch)
        if not len(places):
            continue
        key = key_of("loss", step.tokens, step.ends, targets)
        value = memory.get(key) if memory is not None else None
        if value is None:
            logits = runner.run(step, places)  # (N, vocabulary)
            wanted = torch.from_numpy(targets).to(logits.device)
            part = sum(
                torch.nn.functional.cross_entropy(some.float(), tokens, reduction="sum").item()
                for some, tokens in zip(logits.split(SLICE), wanted.split(SLICE), strict=True)
            )
            value = numpy.float64(part).tobytes()
            if memory is not None:
                memory.put(key, value)
        total += float(numpy.frombuffer(value, dtype=numpy.float64)[0])
        count += len(targets)
    if not count:
        raise DataError(f"{path}: no row has a trained token, so there is no loss; raise format.held_out")
    return total / count


def batches(rows: list[dict], batch_tokens: int) -> Iterator[list[dict]]:
    """Consecutive rows of at most `batch_tokens` tokens together; a longer row stands alone."""
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
