"""One batch of conversations to token rows: encoded, cut at rounds, joined, checked and counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
import pyarrow

from aurora.format.params import Format
from aurora.format.prompt_formats import Form
from aurora.format.rounds import cut_rounds
from aurora.format.row_files import HELD_OUT, TRAIN, checked_messages
from aurora.format.row_statistics import new_counts
from aurora.format.split import Split

CHECKED = 128  # one row of so many is decoded and compared with its messages


# Where a row comes from, within its batch: the conversation; 0 for its first row, 1, 2 … for those that continue it;
# the first turn, and how many rounds from there.
ROW = numpy.dtype([(name, numpy.int64) for name in ("conversation", "number", "turn", "rounds")])


class Turns(NamedTuple):
    """The turns of a batch, users' at even places."""

    offsets: numpy.ndarray  # (C + 1,) of the conversations
    contents: pyarrow.StringArray
    encoded: list[numpy.ndarray]  # token ids of each
    opening: list[numpy.ndarray]  # the same, of a turn that begins a row
    shortened: dict[int, str]  # text of the prompts that were truncated, by turn


class Formatted(NamedTuple):
    """What becomes of one batch of C conversations from S sources."""

    train: pyarrow.Table
    held_out: pyarrow.Table
    sources: list[str]  # (S,)
    codes: numpy.ndarray  # (C,) the source of each conversation, as its place in `sources`
    counts: numpy.ndarray  # (C,) records of aurora.format.row_statistics.COUNTED
    chinese: numpy.ndarray  # (S, 3) as ChineseCost.count has it, over the tokens of the rows


@dataclass(frozen=True, slots=True)
class Formatter:
    """The rules of one run; `batch` applies them."""

    form: Form
    params: Format

    def batch(self, batch: pyarrow.RecordBatch, sides: Split, first: int, place: str) -> Formatted:
        """Rows of a batch of conversations that begins at row `first` of `place`. Raises DataError or ModelError."""
        offsets, contents = checked_messages(batch, first, place)
        turns = Turns(offsets, contents, *self.form.encode(contents), {})
        counts = new_counts(len(batch))
        rows = self._cut(turns, sides.near_held_out, counts)
        held_out = sides.held_out[rows["conversation"]]
        rows = rows[numpy.lexsort((rows["number"], rows["conversation"], held_out))]  # training rows first
        train = numpy.count_nonzero(~held_out)
        ids, labels, ends = self._tokens(turns, rows, place)
        self._check(turns, rows, ids, labels, ends, batch["id"], place)
        origin = batch.select(["id", "source"]).take(rows["conversation"])
        columns = [numbered(origin["id"], rows["number"]), origin["source"]]
        for tokens in (ids, labels):
            columns.append(pyarrow.ListArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), tokens))
        table = pyarrow.Table.from_arrays(columns, schema=TRAIN)
        texts = first_round(turns, rows["turn"][train:])
        sources = batch["source"].dictionary_encode()
        names, codes = sources.dictionary.to_pylist(), sources.indices.to_numpy()
        of_tokens = numpy.repeat(codes[rows["conversation"]], numpy.diff(ends))  # (T,)
        return Formatted(
            table.slice(0, train),
            pyarrow.Table.from_arrays([*table.slice(train).columns, *texts], schema=HELD_OUT),
            names,
            codes,
            counts,
            self.form.chinese.count(ids, of_tokens, len(names)),
        )

    def _cut(self, turns: Turns, left_out: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
        """Lays the rounds of each conversation into rows, (R,) of ROW, and counts what is lost.

        `left_out` (C,) bool tells which conversations get no row.
        """
        per_row, per_round = self.form.fixed_tokens
        capacity = self.params.max_length - per_row
        starts = turns.offsets[:-1]
        tokens, opening = token_counts(turns.encoded), token_counts(turns.opening)
        lengths = tokens[::2] + tokens[1::2] + per_round  # of each round
        alone = lengths + opening[::2] - tokens[::2]  # at the beginning of a row
        counts["shortest_round"] = numpy.minimum.reduceat(alone, starts // 2) + per_row
        totals = numpy.add.reduceat(lengths, starts // 2) + (alone - lengths)[starts // 2]  # (C,)
        rounds = numpy.diff(turns.offsets) // 2
        counts["conversations"] = 1
        counts["rounds"] = rounds
        counts["conversations_dropped"] = left_out
        counts["rounds_dropped_near_held_out"] = rounds * left_out
        counts["tokens_dropped"] = totals * left_out
        counts["rounds_kept"] = rounds * ~left_out
        counts["trained_tokens"] = numpy.add.reduceat(tokens[1::2] + 1, starts // 2) * ~left_out
        whole = numpy.flatnonzero(~left_out & (totals <= capacity))
        rows = numpy.zeros(len(whole), dtype=ROW)
        rows["conversation"], rows["turn"], rows["rounds"] = whole, starts[whole], rounds[whole]
        long = numpy.flatnonzero(~left_out & (totals > capacity)).tolist()
        cut = [row for index in long for row in self._cut_long(index, turns, counts[index])]
        return numpy.concatenate([rows, numpy.array(cut, dtype=ROW)])

    def _cut_long(self, index: int, turns: Turns, counts: numpy.void) -> list[tuple[int, int, int, int]]:
        """The rows of conversation `index`, which is longer than a row, as ROW has them.

        Prompts that are truncated are replaced in `turns`.
        """
        per_row, per_round = self.form.fixed_tokens
        capacity = self.params.max_length - per_row
        encoded, opening = turns.encoded, turns.opening

        def length(turn: int) -> int:
            return len(encoded[turn]) + len(encoded[turn + 1]) + per_round

        def alone(turn: int) -> int:
            return length(turn) + len(opening[turn]) - len(encoded[turn])

        def sum_of(turns: Sequence[int]) -> int:
            return alone(turns[0]) + sum(map(length, turns[1:])) if turns else 0

        users = range(*turns.offsets[index : index + 2].tolist(), 2)
        read = sum_of(users)
        truncated = set()
        if self.params.long_round == "truncate_prompt":
            for turn in users:
                room = capacity - per_round - len(encoded[turn + 1])
                if alone(turn) > capacity and (
                    shorter := self.form.shorten(turns.contents[turn].as_py(), room)
                ):
                    # It fills a row of its own, and so is never read behind another round.
                    turns.shortened[turn], opening[turn] = shorter
                    encoded[turn] = opening[turn]
                    truncated.add(turn)
        continued = self.params.long_conversation == "continue"
        cut = cut_rounds(list(map(length, users)), capacity, continued, list(map(alone, users)))
        kept = [users[number] for row in cut.rows for number in row]
        counts["conversations_continued"] = len(cut.rows) > 1
        counts["conversations_dropped"] = not cut.rows
        counts["rounds_kept"] = len(kept)
        counts["prompts_truncated"] = len(truncated.intersection(kept))
        counts["rounds_dropped_too_long"] = len(cut.too_long)
        counts["rounds_dropped_rest"] = len(cut.rest)
        counts["trained_tokens"] = sum(len(encoded[turn + 1]) + 1 for turn in kept)
        rows = [[users[number] for number in row] for row in cut.rows]
        counts["tokens_dropped"] = max(0, read - sum(map(sum_of, rows)))
        return [(index, number, users[row[0]], len(row)) for number, row in enumerate(cut.rows)]

    def _tokens(
        self, turns: Turns, rows: numpy.ndarray, place: str
    ) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
        """The rows as `Form.join` has them; raises ModelError if text became a control token."""
        count = 2 * rows["rounds"]
        before = numpy.cumsum(count) - count  # turns of the rows before
        chosen = numpy.repeat(rows["turn"] - before, count) + numpy.arange(count.sum())
        chosen = chosen.tolist()
        ids, labels, ends = self.form.join(
            [turns.encoded[turn] for turn in chosen], [turns.opening[turn] for turn in chosen], rows["rounds"]
        )
        self.form.refuse_forged(ids, len(rows), int(rows["rounds"].sum()), place)
        return ids, labels, ends

    def _check(
        self,
        turns: Turns,
        rows: numpy.ndarray,
        ids: numpy.ndarray,
        labels: numpy.ndarray,
        ends: numpy.ndarray,
        names: pyarrow.StringArray,
        place: str,
    ) -> None:
        """Decodes one row in CHECKED and compares it with its answers; raises ModelError."""
        for index in range(0, len(rows), 1 if self.form.checks_every_row else CHECKED):
            span, row = slice(ends[index], ends[index + 1]), rows[index]
            contents = turns.contents[row["turn"] : row["turn"] + 2 * row["rounds"]].to_pylist()
            for turn in turns.shortened.keys() & set(range(row["turn"], row["turn"] + len(contents))):
                contents[turn - row["turn"]] = turns.shortened[turn]
            where = f"{place}, row {names[row['conversation']]}"
            self.form.check(ids[span], labels[span], contents, index % CHECKED == 0, where)


def token_counts(encoded: list[numpy.ndarray]) -> numpy.ndarray:
    """Tokens of each turn, (N,) int64."""
    return numpy.fromiter(map(len, encoded), dtype=numpy.int64, count=len(encoded))


def numbered(ids: pyarrow.StringArray, numbers: numpy.ndarray) -> pyarrow.StringArray:
    """The id of each row: that of its conversation, with .1, .2 … behind it on those that continue one."""
    if not numbers.any():
        return ids
    pairs = zip(ids.to_pylist(), numbers.tolist(), strict=True)
    return pyarrow.array([f"{key}.{number}" if number else key for key, number in pairs])


def first_round(turns: Turns, first: numpy.ndarray) -> tuple[pyarrow.StringArray, pyarrow.StringArray]:
    """The prompt at each of the turns `first` (R,), as far as the row's tokens have it, and its answer."""
    prompts = zip(first.tolist(), turns.contents.take(first).to_pylist(), strict=True)
    whole = [turns.shortened.get(turn, prompt) for turn, prompt in prompts]
    return pyarrow.array(whole, pyarrow.string()), turns.contents.take(first + 1)
