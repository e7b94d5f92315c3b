"""Conversations to token rows: split by hash of content, formatted in batches, counted and written."""

import gc
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from aurora.core.errors import DataError, ParamsError
from aurora.core.files import write_json, write_text
from aurora.format.batch import Formatter
from aurora.format.params import Format
from aurora.format.prompt_formats import open_prompt_format
from aurora.format.row_files import HELD_OUT, TRAIN, read_batches, read_keys, row_writer
from aurora.format.row_statistics import Tally
from aurora.format.split import Split, split

AHEAD = 4  # batches under way


def format_rows(conversations: Path, tokenizer: Path, out: Path, params: Format, *, threads: int | None = None) -> dict:
    """Writes train.parquet, held_out.parquet, lengths.csv and metrics.json into `out`; returns the metrics.

    `tokenizer` is the base's folder, or its tokenizer.model for Mistral's prompt. The files do not depend on `threads` (all cores by default).
    Raises DataError, ModelError or ParamsError, in one line, for what a user can correct.
    """
    from tqdm import tqdm

    formatter = Formatter(open_prompt_format(tokenizer, params.prompt), params)
    tally = Tally(params.max_length)
    place = str(conversations)
    ids, clusters, fit = read_keys(conversations)
    sides = split(ids, clusters, params.held_out, fit)
    batches = (
        (batch, Split(*(side[first : first + len(batch)] for side in sides)), first, place)
        for first, batch in read_batches(conversations)
    )
    out.mkdir(parents=True, exist_ok=True)
    with (
        no_collections(),
        ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool,
        row_writer(out / "train.parquet", TRAIN, pool) as train,
        row_writer(out / "held_out.parquet", HELD_OUT, pool) as held_out,
        tqdm(desc="format", unit=" conversations", unit_scale=True, disable=None) as progress,
    ):
        for done in in_order(pool, formatter.batch, batches):
            tally.add(done.sources, done.codes, done.counts, done.chinese)
            for rows, writer, side in ((done.train, train, False), (done.held_out, held_out, True)):
                tally.add_rows(rows, side)
                writer.write(rows)
            progress.update(len(done.codes))
    check_result(tally, params, conversations)
    metrics = tally.metrics()
    write_text(out / "lengths.csv", tally.length_table())
    write_json(out / "metrics.json", metrics)
    return metrics


@contextmanager
def no_collections() -> Iterator[None]:
    """Turns Python's garbage collector off: each batch makes thousands of arrays and no cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def in_order(pool: ThreadPoolExecutor, function: Callable, arguments: Iterable[tuple]) -> Iterator:
    """Results of the calls in their order, AHEAD of them under way at most, which bounds the memory.

    Threads suffice: the tokeniser, Arrow and much of NumPy work without Python's lock.
    """
    waiting: deque[Future] = deque()
    for each in arguments:
        waiting.append(pool.submit(function, *each))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def check_result(tally: Tally, params: Format, place: Path) -> None:
    """Raises an error if a round was lost uncounted, and if there is nothing to train on or nothing held out."""
    total = tally.total()
    lost = sum(
        total[f"rounds_dropped_{reason}"] for reason in ("too_long", "rest", "near_held_out", "untrained", "tool_calls")
    )
    if total["rounds_kept"] + lost != total["rounds"]:
        raise AssertionError(f"{total['rounds_kept']} + {lost} of {total['rounds']} rounds are accounted for")
    if not total["conversations"]:
        raise DataError(f"{place}: holds no conversation; run dvc repro clean, and see its dropped.parquet")
    if not total["rounds_kept"]:
        raise ParamsError(
            f"params.yaml: format.max_length is {params.max_length}, but the shortest round has "
            f"{tally.shortest_round} tokens; raise it"
        )
    train, held_out = (len(tally.row_lengths(held_out=side)) for side in (False, True))
    if not train or not held_out:
        raise ParamsError(
            f"params.yaml: format.held_out is {params.held_out}, and of {total['conversations']} conversations none "
            f"is {'held out' if train else 'left to train on'}; {'raise' if train else 'lower'} it or add data"
        )
