"""One batch of conversations to token rows: encoded, cut at rounds, joined, checked and counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
import pyarrow

from aurora.core.errors import ModelError
from aurora.format.params import Format
from aurora.format.prompt_formats import PromptFormat
from aurora.format.rounds import cut_rounds
from aurora.format.row_files import HELD_OUT, TRAIN, checked_messages
from aurora.format.row_statistics import new_counts
from aurora.format.split import Split
from aurora.prompt.mistral import IGNORED, with_system

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
    trained: numpy.ndarray  # (R,) bool of each round: whether its answer is trained
    systems: dict[int, str]  # system prompt by conversation
    shortened: dict[int, str]  # text of the prompts that were truncated, by turn
    learnt: dict[int, numpy.ndarray]  # of answers with tool calls, by turn: which of its tokens are trained
    limits: dict[int, int]  # rounds in front of the first tool call, by conversation whose calls have no exact tokens


class Formatted(NamedTuple):
    """Result for one batch of C conversations from S sources."""

    train: pyarrow.Table
    held_out: pyarrow.Table
    sources: list[str]  # (S,)
    codes: numpy.ndarray  # (C,) the source of each conversation, as its place in `sources`
    counts: numpy.ndarray  # (C,) records of aurora.format.row_statistics.COUNTED
    chinese: numpy.ndarray  # (S, 3) as ChineseCost.count has it, over the tokens of the rows


@dataclass(frozen=True, slots=True)
class Formatter:
    """The rules of one run; `batch` applies them."""

    prompt_format: PromptFormat
    params: Format

    def batch(self, batch: pyarrow.RecordBatch, sides: Split, first: int, place: str) -> Formatted:
        """Rows of a batch of conversations that begins at row `first` of `place`. Raises DataError or ModelError."""
        offsets, contents = checked_messages(batch, first, place)
        turns = self._encode(batch, offsets, contents)
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
        texts = first_round(turns, rows[train:])
        sources = batch["source"].dictionary_encode()
        names, codes = sources.dictionary.to_pylist(), sources.indices.to_numpy()
        of_tokens = numpy.repeat(codes[rows["conversation"]], numpy.diff(ends))  # (T,)
        trained = table.slice(0, train)
        # A slice would hold the whole batch until its few rows are written.
        held = table.take(numpy.arange(train, len(rows)))
        if "repeat" in batch.schema.names:
            times = batch["repeat"].to_numpy()
            trained = repeated(trained, times[rows["conversation"][:train]])
            counts["trained_tokens"] *= numpy.where(sides.held_out, 1, times)
        return Formatted(
            trained,
            pyarrow.Table.from_arrays([*held.columns, *texts], schema=HELD_OUT),
            names,
            codes,
            counts,
            self.prompt_format.chinese.count(ids, of_tokens, len(names)),
        )

    def _encode(self, batch: pyarrow.RecordBatch, offsets: numpy.ndarray, contents: pyarrow.StringArray) -> Turns:
        """The turns of a batch as token ids, system prompts and tool calls where they belong."""
        columns = {name: batch[name] for name in batch.schema.names}
        encoded, opening = self.prompt_format.encode(contents)
        trained = numpy.ones(len(contents) // 2, dtype=bool)
        if "train" in columns:
            trained = columns["train"].flatten().to_numpy(zero_copy_only=False)
        systems = {}
        if "system" in columns:
            systems = {row: text for row, text in enumerate(columns["system"].to_pylist()) if text}
            encoded, opening = list(encoded), list(opening)
        for row, system in systems.items():
            first, behind = offsets[row : row + 2].tolist()
            for turn in range(first, behind, 2):
                opening[turn] = self.prompt_format.opening(contents[turn].as_py(), system)
        turns = Turns(offsets, contents, encoded, opening, trained, systems, {}, {}, {})
        if "steps" in columns:
            steps, tools = columns["steps"].to_pylist(), columns["tools"].to_pylist()
            for row, of_rounds in enumerate(steps):
                if any(of_rounds):
                    self._encode_tools(turns, row, of_rounds, tools[row])
        return turns

    def _encode_tools(self, turns: Turns, row: int, steps: list[str], tools: str) -> None:
        """Encodes a conversation with tool calls, or limits it to the rounds in front of the first."""
        start, end = turns.offsets[row : row + 2].tolist()
        texts = turns.contents[start:end].to_pylist()
        trained = turns.trained[start // 2 : end // 2].tolist()
        rounds = list(zip(texts[::2], texts[1::2], trained, steps, strict=True))
        found = self.prompt_format.tool_rounds(rounds, turns.systems.get(row, ""), tools)
        if found is None:
            turns.limits[row] = next(number for number, step in enumerate(steps) if step)
            return
        for number, (opening, (ids, learnt)) in enumerate(zip(*found, strict=True)):
            turn = start + 2 * number
            turns.opening[turn], turns.encoded[turn + 1], turns.learnt[turn + 1] = opening, ids, learnt

    def _cut(self, turns: Turns, left_out: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
        """Lays the rounds of each conversation into rows, (R,) of ROW, and counts what is lost.

        `left_out` (C,) bool marks the conversations that get no row.
        """
        per_row, per_round = self.prompt_format.fixed_tokens
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
        counts["trained_tokens"] = numpy.add.reduceat(trained_counts(turns, tokens), starts // 2) * ~left_out
        counts["system_prompts"][list(turns.systems)] = 1
        fits = totals <= capacity
        fits[list(turns.limits)] = False
        whole = numpy.flatnonzero(~left_out & fits)
        rows = numpy.zeros(len(whole), dtype=ROW)
        rows["conversation"], rows["turn"], rows["rounds"] = whole, starts[whole], rounds[whole]
        long = numpy.flatnonzero(~left_out & ~fits).tolist()
        cut = [row for index in long for row in self._cut_long(index, turns, counts[index])]
        rows = numpy.concatenate([rows, numpy.array(cut, dtype=ROW)])
        return rows if turns.trained.all() else self._without_untrained(rows, turns, counts)

    def _without_untrained(self, rows: numpy.ndarray, turns: Turns, counts: numpy.ndarray) -> numpy.ndarray:
        """The rows in which an answer is trained; the rounds of the others are counted."""
        before = numpy.concatenate(([0], numpy.cumsum(turns.trained)))
        first = rows["turn"] // 2
        lost = before[first + rows["rounds"]] == before[first]
        numpy.subtract.at(counts["rounds_kept"], rows["conversation"][lost], rows["rounds"][lost])
        numpy.add.at(counts["rounds_dropped_untrained"], rows["conversation"][lost], rows["rounds"][lost])
        return rows[~lost]

    def _cut_long(self, index: int, turns: Turns, counts: numpy.void) -> list[tuple[int, int, int, int]]:
        """The rows of conversation `index`, which is longer than a row, as ROW has them.

        Prompts that are truncated are replaced in `turns`.
        """
        per_row, per_round = self.prompt_format.fixed_tokens
        capacity = self.params.max_length - per_row
        encoded, opening = turns.encoded, turns.opening

        def length(turn: int) -> int:
            return len(encoded[turn]) + len(encoded[turn + 1]) + per_round

        def alone(turn: int) -> int:
            return length(turn) + len(opening[turn]) - len(encoded[turn])

        def sum_of(turns: Sequence[int]) -> int:
            return alone(turns[0]) + sum(map(length, turns[1:])) if turns else 0

        first, behind = turns.offsets[index : index + 2].tolist()
        users = range(first, behind, 2)
        read = sum_of(users)
        if index in turns.limits:
            counts["rounds_dropped_tool_calls"] = len(users) - turns.limits[index]
            users = users[: turns.limits[index]]
        if not users:
            counts["conversations_dropped"], counts["rounds_kept"] = 1, 0
            counts["trained_tokens"], counts["tokens_dropped"] = 0, read
            return []
        truncated = set()
        if self.params.long_round == "truncate_prompt":
            for turn in users:
                room = capacity - per_round - len(encoded[turn + 1])
                if alone(turn) > capacity and (
                    shorter := self.prompt_format.shorten(
                        turns.contents[turn].as_py(), room, turns.systems.get(index, "")
                    )
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
        tokens = token_counts(encoded[users[0] : users[-1] + 2])
        learnt = trained_counts(turns, tokens, users[0])
        counts["trained_tokens"] = sum(int(learnt[(turn - users[0]) // 2]) for turn in kept)
        rows = [[users[number] for number in row] for row in cut.rows]
        counts["tokens_dropped"] = max(0, read - sum(map(sum_of, rows)))
        return [(index, number, users[row[0]], len(row)) for number, row in enumerate(cut.rows)]

    def _tokens(
        self, turns: Turns, rows: numpy.ndarray, place: str
    ) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
        """The rows as `PromptFormat.join` has them; raises ModelError if text became a control token."""
        count = 2 * rows["rounds"]
        starts = numpy.cumsum(count) - count  # turns of the rows before
        places = numpy.repeat(rows["turn"] - starts, count) + numpy.arange(count.sum())
        chosen = places.tolist()
        encoded = [turns.encoded[turn] for turn in chosen]
        if turns.opening is not turns.encoded:
            for start in starts.tolist():
                encoded[start] = turns.opening[chosen[start]]
        trained = turns.trained[places[::2] // 2]
        ids, labels, ends = self.prompt_format.join(encoded, rows["rounds"], trained)
        if turns.learnt:
            labels = self._without_results(turns, chosen, encoded, labels, ends, rows)
        self._refuse_forged(turns, rows, chosen, ids, place=place)
        return ids, labels, ends

    def _without_results(
        self, turns: Turns, chosen: list[int], encoded: list[numpy.ndarray], labels: numpy.ndarray,
        ends: numpy.ndarray, rows: numpy.ndarray,
    ) -> numpy.ndarray:  # fmt: skip
        """Labels in which, of an answer with tool calls, the results are not trained."""
        labels = labels.copy()
        per_round = self.prompt_format.fixed_tokens[1]
        turn = 0
        for row, start in enumerate(ends[:-1].tolist()):
            at = start
            for number in range(int(rows["rounds"][row])):
                at += (per_round - 1 if number else 0) + len(encoded[turn])
                length = len(encoded[turn + 1])
                if (learnt := turns.learnt.get(chosen[turn + 1])) is not None:
                    labels[at : at + length][~learnt] = IGNORED
                at += length + 1
                turn += 2
        return labels

    def _refuse_forged(
        self, turns: Turns, rows: numpy.ndarray, chosen: list[int], ids: numpy.ndarray, place: str
    ) -> None:
        """Raises ModelError unless exactly the control tokens that the format places are there."""
        expected = self.prompt_format.control_tokens(len(rows), int(rows["rounds"].sum()))
        count = self.prompt_format.count_control
        if turns.systems or turns.learnt:  # their fixed text was encoded apart from their contents
            for row in rows:
                if int(row["conversation"]) in turns.systems or int(row["turn"]) + 1 in turns.learnt:
                    expected += count(turns.opening[row["turn"]]) - self.prompt_format.opening_control
            expected += sum(count(turns.encoded[turn]) for turn in chosen if turn in turns.learnt)
        if (found := count(ids)) != expected:
            raise ModelError(f"{place}: {found} control tokens where {expected} were placed; the text forged some")

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
        for index in range(0, len(rows), 1 if self.prompt_format.checks_every_row else CHECKED):
            span, row = slice(ends[index], ends[index + 1]), rows[index]
            contents = turns.contents[row["turn"] : row["turn"] + 2 * row["rounds"]].to_pylist()
            for turn in turns.shortened.keys() & set(range(row["turn"], row["turn"] + len(contents))):
                contents[turn - row["turn"]] = turns.shortened[turn]
            where = f"{place}, row {names[row['conversation']]}"
            if any(turn in turns.learnt for turn in range(row["turn"], row["turn"] + len(contents))):
                continue  # compared when it was encoded
            system = turns.systems.get(int(row["conversation"]), "")
            trained = turns.trained[row["turn"] // 2 : row["turn"] // 2 + row["rounds"]].tolist()
            self.prompt_format.check(ids[span], labels[span], contents, trained, system, index % CHECKED == 0, where)


def token_counts(encoded: list[numpy.ndarray]) -> numpy.ndarray:
    """Tokens of each turn, (N,) int64."""
    return numpy.fromiter(map(len, encoded), dtype=numpy.int64, count=len(encoded))


def numbered(ids: pyarrow.StringArray, numbers: numpy.ndarray) -> pyarrow.StringArray:
    """The id of each row: that of its conversation, with .1, .2 … behind it on those that continue one."""
    if not numbers.any():
        return ids
    pairs = zip(ids.to_pylist(), numbers.tolist(), strict=True)
    return pyarrow.array([f"{key}.{number}" if number else key for key, number in pairs])


def trained_counts(turns: Turns, tokens: numpy.ndarray, first: int = 0) -> numpy.ndarray:
    """(R,) trained tokens of each round, end token included; `tokens` are those of the turns from `first` on."""
    counts = tokens[1::2] + 1
    for turn, learnt in turns.learnt.items():
        if first <= turn < first + len(tokens):
            counts[(turn - first) // 2] = numpy.count_nonzero(learnt) + 1
    return counts * turns.trained[first // 2 : (first + len(tokens)) // 2]


def repeated(rows: pyarrow.Table, times: numpy.ndarray) -> pyarrow.Table:
    """The rows, each repeated `times` times; the ids of repetitions end on #2, #3 …"""
    places = numpy.repeat(numpy.arange(len(rows)), times)
    number = numpy.arange(len(places)) - numpy.repeat(numpy.cumsum(times) - times, times)
    ids = zip(rows["id"].take(places).to_pylist(), number.tolist(), strict=True)
    names = [f"{key}#{again + 1}" if again else key for key, again in ids]
    return rows.take(places).set_column(0, "id", pyarrow.array(names, pyarrow.string()))


def first_round(turns: Turns, rows: numpy.ndarray) -> tuple[pyarrow.StringArray, pyarrow.StringArray]:
    """The first prompt of each row, as far as its tokens have it, behind its system prompt, and the answer."""
    first = rows["turn"]
    prompts = zip(first.tolist(), rows["conversation"].tolist(), turns.contents.take(first).to_pylist(), strict=True)
    whole = [
        with_system(turns.systems.get(row, ""), turns.shortened.get(turn, prompt)) for turn, row, prompt in prompts
    ]
    return pyarrow.array(whole, pyarrow.string()), turns.contents.take(first + 1)
