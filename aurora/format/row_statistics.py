"""What the format stage counts: rows, tokens and losses by source, token lengths, packing, cost of Chinese."""

import re
import sys
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from aurora.prompt.tokenizer import all_pieces

if TYPE_CHECKING:
    import pyarrow
    from sentencepiece import SentencePieceProcessor

LENGTH_BINS = 16  # bars of the length histogram, from 0 to max_length
PACKED_TOGETHER = 1000  # rows that TRL packs at a time: the batch of datasets.Dataset.map
MAIN_BLOCK = re.compile("[\u4e00-\u9fff]")  # the Chinese characters whose first byte in UTF-8 is E4 to E9
UTF8_BYTES_PER_CHINESE_CHARACTER = 3
SELDOM = ("rounds_dropped_untrained", "rounds_dropped_tool_calls", "system_prompts")  # printed where there are some

COUNTED = (
    "conversations",
    "conversations_continued",
    "conversations_dropped",
    "rounds",
    "rounds_kept",
    "rounds_dropped_too_long",
    "rounds_dropped_rest",
    "rounds_dropped_near_held_out",
    "rounds_dropped_untrained",
    "rounds_dropped_tool_calls",
    "system_prompts",
    "prompts_truncated",
    "trained_tokens",
    "tokens_dropped",
)
CHINESE = ("chinese_characters", "chinese_characters_in_bytes", "chinese_tokens")


def new_counts(conversations: int) -> numpy.ndarray:
    """(C,) records of zeros, one for each conversation: the fields COUNTED, and `shortest_round` in tokens."""
    return numpy.zeros(conversations, dtype=[(name, numpy.int64) for name in (*COUNTED, "shortest_round")])


class Tally:
    """Counts that grow batch by batch; `metrics` and `length_table` read them at the end."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.shortest_round = sys.maxsize  # tokens of the shortest round that was read, as a row of its own
        self.counts: dict[str, Counter] = {}  # by source
        self.train_lengths: list[numpy.ndarray] = []  # tokens of training rows, in their order
        self.lengths: dict[tuple[str, bool], list[numpy.ndarray]] = {}  # tokens of rows, by (source, held out)

    def add(self, names: Sequence[str], codes: numpy.ndarray, counts: numpy.ndarray, chinese: numpy.ndarray) -> None:
        """Adds the counts of conversations.

        names: the S sources; codes (C,): the source of each conversation, as its place among them;
        counts (C,): records of `new_counts`; chinese (S, 3): as `ChineseCost.count` returns it.
        """
        self.shortest_round = min(self.shortest_round, int(counts["shortest_round"].min()))
        for code, source in enumerate(names):
            chosen = counts[codes == code]
            sums = {name: int(chosen[name].sum()) for name in COUNTED}
            sums |= zip(CHINESE, chinese[code].tolist(), strict=True)
            self.counts.setdefault(source, Counter()).update(sums)

    def add_rows(self, rows: "pyarrow.Table", held_out: bool) -> None:
        """Adds the lengths of rows of one side."""
        import pyarrow.compute

        lengths = pyarrow.compute.list_value_length(rows["input_ids"]).to_numpy().astype(numpy.int64)
        if not held_out:
            self.train_lengths.append(lengths)
        sources = numpy.asarray(rows["source"].to_pylist())
        for source in numpy.unique(sources).tolist():
            self.lengths.setdefault((source, held_out), []).append(lengths[sources == source])

    def total(self) -> Counter:
        """The counts of all sources together."""
        total = Counter(dict.fromkeys((*COUNTED, *CHINESE), 0))
        for counts in self.counts.values():
            total.update(counts)
        return total

    def row_lengths(self, source: str | None = None, held_out: bool | None = None) -> numpy.ndarray:
        """Tokens of the chosen rows, (N,) int64, in no order that matters."""
        chosen = [
            lengths
            for (name, side), lengths in sorted(self.lengths.items())
            if source in (None, name) and held_out in (None, side)
        ]
        return joined([part for lengths in chosen for part in lengths])

    def metrics(self) -> dict:
        """Everything for metrics.json: totals, then the same by source."""
        train = joined(self.train_lengths)
        return {
            "max_length": self.max_length,
            "packing_efficiency": packing_efficiency(train, self.max_length),
            "padding_efficiency": padding_efficiency(train),
            **self._part(None, self.total()),
            "sources": {name: self._part(name, self.counts[name]) for name in sorted(self.counts)},
        }

    def _part(self, source: str | None, counts: Counter) -> dict:
        lengths = self.row_lengths(source)
        chinese = counts["chinese_characters"]
        spelled = counts["chinese_characters_in_bytes"]
        return {
            "conversations": counts["conversations"],
            "train_rows": len(self.row_lengths(source, held_out=False)),
            "held_out_rows": len(self.row_lengths(source, held_out=True)),
            "conversations_continued": counts["conversations_continued"],
            "conversations_dropped": counts["conversations_dropped"],
            "rounds": counts["rounds"],
            "rounds_kept": counts["rounds_kept"],
            "rounds_dropped_too_long": counts["rounds_dropped_too_long"],
            "rounds_dropped_rest": counts["rounds_dropped_rest"],
            "rounds_dropped_near_held_out": counts["rounds_dropped_near_held_out"],
            **{name: counts[name] for name in SELDOM if counts[name]},
            "prompts_truncated": counts["prompts_truncated"],
            "tokens": int(lengths.sum()),
            "trained_tokens": counts["trained_tokens"],
            "tokens_dropped": counts["tokens_dropped"],
            "row_tokens_mean": float(lengths.mean()) if len(lengths) else None,
            "row_tokens_median": percentile(lengths, 50),
            "row_tokens_95_percent": percentile(lengths, 95),
            "row_tokens_max": int(lengths.max()) if len(lengths) else None,
            "chinese_characters": chinese,
            "chinese_characters_in_bytes_share": spelled / chinese if chinese else None,
            "tokens_per_chinese_character": counts["chinese_tokens"] / chinese if chinese else None,
        }

    def length_table(self) -> str:
        """Histogram of row lengths by source as CSV: tokens is the upper edge of a bin, included."""
        edges = [-(-self.max_length * step // LENGTH_BINS) for step in range(1, LENGTH_BINS + 1)]
        lines = ["source,tokens,rows"]
        for source in sorted(self.counts):
            bins = numpy.searchsorted(edges, self.row_lengths(source))
            rows = numpy.bincount(bins, minlength=LENGTH_BINS)
            lines += [f"{source},{edge},{count}" for edge, count in zip(edges, rows, strict=True)]
        return "\n".join(lines) + "\n"


def joined(parts: list[numpy.ndarray]) -> numpy.ndarray:
    """One (N,) int64 array of several, or of none."""
    return numpy.concatenate([numpy.empty(0, dtype=numpy.int64), *parts])


def percentile(lengths: numpy.ndarray, percent: int) -> int | None:
    """The smallest length that at least `percent` percent of the rows do not exceed."""
    if not len(lengths):
        return None
    return int(numpy.percentile(lengths, percent, method="inverted_cdf"))


def packed_rows(lengths: Sequence[int] | numpy.ndarray, max_length: int) -> int:
    """Number of packed rows that best-fit decreasing fills (arXiv 2404.10830).

    Each length goes, longest first, into the fullest packed row that still has room for it.
    """
    rows = 0
    room: Counter[int] = Counter()  # open packed rows by their free tokens
    frees: list[int] = []  # the keys of `room`, sorted
    for length in sorted((int(length) for length in lengths), reverse=True):
        place = bisect_left(frees, length)
        if place == len(frees):
            free = max_length
            rows += 1
        else:
            free = frees[place]
            room[free] -= 1
            if not room[free]:
                del frees[place]
        left = free - length
        if left > 0:
            if not room[left]:
                insort(frees, left)
            room[left] += 1
    return rows


def packed_in_order(lengths: Sequence[int] | numpy.ndarray, max_length: int) -> int:
    """Number of rows that TRL packs rows of these lengths into, in their order, by `bfd`."""
    starts = range(0, len(lengths), PACKED_TOGETHER)
    return sum(packed_rows(lengths[start : start + PACKED_TOGETHER], max_length) for start in starts)


def packing_efficiency(lengths: Sequence[int] | numpy.ndarray, max_length: int) -> float | None:
    """Share of the slots that hold a token when TRL packs rows of these lengths, in their order, by `bfd`.

    Each packed row is padded to `max_length`; None without rows.
    """
    rows = packed_in_order(lengths, max_length)
    return float(sum(lengths)) / (rows * max_length) if rows else None


def padding_efficiency(lengths: numpy.ndarray) -> float | None:
    """Share of slots that hold a token when rows are padded to the longest row and not packed."""
    return float(lengths.mean() / lengths.max()) if len(lengths) else None


class ChineseCost:
    """How many tokens the vocabulary spends on Chinese characters, U+4E00 to U+9FFF.

    A character that no piece holds is spelled in three byte tokens, E4 B8 80 to E9 BF BF. As the tokeniser loses
    nothing, the tokens tell all: a piece tells how many characters it holds, a first byte that one is spelled.
    """

    def __init__(self, processor: "SentencePieceProcessor") -> None:
        pieces = all_pieces(processor)
        held = numpy.array([0 if piece.isascii() else len(MAIN_BLOCK.findall(piece)) for piece in pieces])
        first_byte = [f"<0x{byte:02X}>" for byte in range(0xE4, 0xEA)]
        spelled = numpy.zeros(len(pieces), dtype=numpy.int64)
        spelled[[pieces.index(piece) for piece in first_byte]] = 1
        tokens = (held > 0) + UTF8_BYTES_PER_CHINESE_CHARACTER * spelled
        self.table = numpy.stack([held + spelled, spelled, tokens], axis=1)  # (V, 3): what one token adds
        self.e4, self.b8 = pieces.index("<0xE4>"), pieces.index("<0xB8>")

    def count(self, ids: numpy.ndarray, codes: numpy.ndarray, sources: int) -> numpy.ndarray:
        """(S, 3) int64: the CHINESE counts of each source, in (T,) tokens whose source is codes (T,)."""
        size = len(self.table)
        seen = numpy.bincount(ids + codes * numpy.int32(size), minlength=sources * size).reshape(sources, size)
        # E4 80 to E4 B7 begins rarer signs; <0xB8> and what follows it stand in the order of their values.
        e4 = numpy.flatnonzero(ids[:-1] == self.e4)
        rarer = codes[e4[ids[e4 + 1] < self.b8]]
        seen[:, self.e4] -= numpy.bincount(rarer, minlength=sources)
        return seen @ self.table
