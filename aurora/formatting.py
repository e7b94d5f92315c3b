"""Conversations to token rows: cut at rounds, split by hash of content, checked, counted and written in batches."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy
import pyarrow

from aurora.chat import check_row, encode_texts, join_rows, prompt_text
from aurora.errors import DataError, ModelError, ParamsError
from aurora.params import Format
from aurora.rounds import cut_rounds, truncate_prompt
from aurora.row_files import SCHEMA, RowWriter, checked_messages, read_batches
from aurora.row_statistics import ChineseCost, Tally, new_counts
from aurora.store import write_json, write_text
from aurora.tokenizer import EOS, check_template, sentencepiece_processor

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

AHEAD = 4  # batches under way
CHECKED = 64  # one row of so many is decoded and compared with its messages


def is_held_out(key: str, share: float) -> bool:
    """Whether the conversations of this key are kept from training; depends on the key and the share alone."""
    digest = hashlib.sha256(f"held_out {key}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


class Row(NamedTuple):
    """Where a row comes from, within its batch."""

    conversation: int
    number: int  # 0 for the first row of a conversation, 1, 2 … for those that continue it
    turns: Sequence[int]  # consecutive; users' at even places


class Formatted(NamedTuple):
    """What becomes of one batch."""

    train: pyarrow.Table
    held_out: pyarrow.Table
    sources: list[str]  # (C,) of its conversations
    counts: numpy.ndarray  # (C,) records of aurora.row_statistics.COUNTED


@dataclass(frozen=True, slots=True)
class Formatter:
    """The rules of one run; `batch` applies them."""

    processor: "SentencePieceProcessor"
    params: Format
    chinese: ChineseCost

    @property
    def control_tokens(self) -> tuple[int, int]:
        """Control tokens of a row, and of each of its rounds."""
        return (1, 1) if self.params.prompt == "mistral" else (0, 2)

    def batch(self, batch: pyarrow.RecordBatch, first: int, place: str) -> Formatted:
        """Rows of a batch of conversations that begins at row `first` of `place`. Raises DataError or ModelError."""
        offsets, contents = checked_messages(batch, first, place)  # (C + 1,) into the turns
        texts = list(contents)
        texts[::2] = map(prompt_text, contents[::2])
        encoded = encode_texts(self.processor, texts)
        ids, sources = batch["id"].to_pylist(), batch["source"].to_pylist()
        clusters = batch["cluster"].to_pylist() if "cluster" in batch.schema.names else ids
        counts = new_counts(len(ids))
        self.chinese.count(encoded, offsets, counts)
        rows = self._cut(offsets, contents, encoded, counts)
        # Near duplicates share the id of one of them; a conversation without any is its own cluster.
        held_out = [is_held_out(key, self.params.held_out) for key in clusters]
        rows.sort(key=lambda row: held_out[row.conversation])  # stable: each side keeps its order
        table = self._table(ids, sources, contents, encoded, rows, place)
        train = sum(not held_out[row.conversation] for row in rows)
        return Formatted(table.slice(0, train), table.slice(train), sources, counts)

    def _cut(
        self, offsets: numpy.ndarray, contents: list[str], encoded: list[numpy.ndarray], counts: numpy.ndarray
    ) -> list[Row]:
        """Lays the rounds of each conversation into rows, and counts what is lost."""
        per_row, per_round = self.control_tokens
        capacity = self.params.max_length - per_row
        tokens = numpy.fromiter(map(len, encoded), dtype=numpy.int64, count=len(encoded))
        lengths = tokens[::2] + tokens[1::2] + per_round  # of each round
        counts["shortest_round"] = numpy.minimum.reduceat(lengths, offsets[:-1] // 2) + per_row
        totals = numpy.add.reduceat(lengths, offsets[:-1] // 2)  # (C,)
        counts["conversations"] = 1
        counts["rounds"] = counts["rounds_kept"] = numpy.diff(offsets) // 2
        counts["trained_tokens"] = numpy.add.reduceat(tokens[1::2] + 1, offsets[:-1] // 2)
        rows = []
        fits = (totals <= capacity).tolist()
        for index, (start, end) in enumerate(pairwise(offsets.tolist())):
            if fits[index]:
                rows.append(Row(index, 0, range(start, end)))
            else:
                rows += self._cut_long(index, start, end, contents, encoded, counts[index])
        return rows

    def _cut_long(
        self,
        index: int,
        start: int,
        end: int,
        contents: list[str],
        encoded: list[numpy.ndarray],
        counts: numpy.void,
    ) -> list[Row]:
        """The rows of conversation `index`, turns `start` to `end`, which is longer than a row.

        Prompts that are truncated are replaced in `contents` and `encoded`.
        """
        per_row, per_round = self.control_tokens
        capacity = self.params.max_length - per_row

        def length(turn: int) -> int:
            return len(encoded[turn]) + len(encoded[turn + 1]) + per_round

        users = range(start, end, 2)
        read = sum(map(length, users))
        truncated = set()
        if self.params.long_round == "truncate_prompt":
            for turn in users:
                room = capacity - per_round - len(encoded[turn + 1])
                if length(turn) > capacity and (
                    shorter := truncate_prompt(self.processor, contents[turn], room)
                ):
                    contents[turn], encoded[turn] = shorter
                    truncated.add(turn)
        cut = cut_rounds(
            [length(turn) for turn in users], capacity, self.params.long_conversation == "continue"
        )
        kept = [users[number] for row in cut.rows for number in row]
        counts["conversations_continued"] = len(cut.rows) > 1
        counts["conversations_dropped"] = not cut.rows
        counts["rounds_kept"] = len(kept)
        counts["prompts_truncated"] = len(truncated.intersection(kept))
        counts["rounds_dropped_too_long"] = len(cut.too_long)
        counts["rounds_dropped_rest"] = len(cut.rest)
        counts["trained_tokens"] = sum(len(encoded[turn + 1]) + 1 for turn in kept)
        counts["tokens_dropped"] = read - sum(map(length, kept))
        return [
            Row(index, number, range(users[row[0]], users[row[-1]] + 2))
            for number, row in enumerate(cut.rows)
        ]

    def _table(
        self,
        ids: list[str],
        sources: list[str],
        contents: list[str],
        encoded: list[numpy.ndarray],
        rows: list[Row],
        place: str,
    ) -> pyarrow.Table:
        """The rows as SCHEMA has them, one in CHECKED of them decoded and compared with its answers."""
        if not rows:
            return SCHEMA.empty_table()
        turns = [turn for row in rows for turn in row.turns]
        rounds = [len(row.turns) // 2 for row in rows]
        input_ids, labels, offsets = join_rows([encoded[turn] for turn in turns], rounds, self.params.prompt)
        per_row, per_round = self.control_tokens
        placed = per_row * len(rows) + per_round * sum(rounds)
        if (found := numpy.count_nonzero(input_ids <= EOS)) != placed:
            raise ModelError(
                f"{place}: {found} control tokens where {placed} were placed; the text forged some"
            )
        names = [
            f"{ids[row.conversation]}.{row.number}" if row.number else ids[row.conversation] for row in rows
        ]
        for index in range(0, len(rows), CHECKED):
            span = slice(offsets[index], offsets[index + 1])
            answers = [contents[turn] for turn in rows[index].turns[1::2]]
            check_row(self.processor, input_ids[span], labels[span], answers, f"{place}, row {names[index]}")
        offsets = pyarrow.array(offsets, pyarrow.int32())
        columns = [
            pyarrow.array(names),
            pyarrow.array([sources[row.conversation] for row in rows]),
            pyarrow.ListArray.from_arrays(offsets, pyarrow.array(input_ids)),
            pyarrow.ListArray.from_arrays(offsets, pyarrow.array(labels)),
            pyarrow.array([contents[row.turns[0]] for row in rows]),
            pyarrow.array([contents[row.turns[1]] for row in rows]),
        ]
        return pyarrow.Table.from_arrays(columns, schema=SCHEMA)


def format_rows(
    conversations: Path, tokenizer: Path, out: Path, params: Format, *, threads: int | None = None
) -> dict:
    """Writes train.parquet, held_out.parquet, lengths.csv and metrics.json into `out`; returns the metrics.

    `tokenizer` is the base's tokenizer.model. The files do not depend on `threads` (all cores by default).
    Raises DataError, ModelError or ParamsError, in one line, for what a user can mend.
    """
    from tqdm import tqdm

    processor = sentencepiece_processor(tokenizer)
    check_template(tokenizer.with_name("tokenizer_config.json"))
    formatter = Formatter(processor, params, ChineseCost(processor))
    tally = Tally(params.max_length)
    place = str(conversations)
    batches = ((batch, first, place) for first, batch in read_batches(conversations))
    out.mkdir(parents=True, exist_ok=True)
    with (
        ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool,
        RowWriter(out / "train.parquet", pool) as train,
        RowWriter(out / "held_out.parquet", pool) as held_out,
        tqdm(desc="format", unit=" conversations", unit_scale=True, disable=None) as progress,
    ):
        for done in in_order(pool, formatter.batch, batches):
            tally.add(done.sources, done.counts)
            for rows, writer, side in ((done.train, train, False), (done.held_out, held_out, True)):
                tally.add_rows(rows, side)
                writer.write(rows)
            progress.update(len(done.sources))
    check_result(tally, params, conversations)
    metrics = tally.metrics()
    write_text(out / "lengths.csv", tally.length_table())
    write_json(out / "metrics.json", metrics)
    return metrics


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
    lost = total["rounds_dropped_too_long"] + total["rounds_dropped_rest"]
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
