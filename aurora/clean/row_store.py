"""The rows of all sources while they are cleaned: some 80 bytes of each in memory, their texts in files of a chunk."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aurora.clean.accounting import Outcome
from aurora.clean.near_duplicates import BANDS, band_keys
from aurora.core.messages import Conversation, Round

if TYPE_CHECKING:
    import pyarrow

    from aurora.clean.contamination import Questions

FACTS = np.dtype(
    [
        ("id", "S16"),  # content id of a row that its own rules keep
        ("chunk", np.int32),
        ("place", np.int32),  # in the file of the chunk
        ("source", np.int16),
        ("position", np.int64),  # 0-based row of the source
        ("read_rounds", np.int32),
        ("rounds", np.int32),  # that are kept, of a row that its own rules keep
        ("characters", np.int32),  # of prompts and answers
        ("reason", np.int16),  # why the row is dropped; 0 for a kept one
        ("repaired", np.int32),
        ("topic", np.int16),
        ("benchmark", np.int16),  # of which the row holds a question
        ("traditional", bool),
        ("system", bool),
        ("untrained", bool),
        ("steps", bool),
    ]
)
CODED = ("reason", "repaired", "topic", "benchmark")  # fields that are numbers of names
TEXTS = ("messages", "system", "train", "steps", "tools")  # columns of a chunk's file, beside the evidence
NOTHING = Conversation("", 0, ())  # stands in a file for a row that the rules drop
OPEN = 16  # files of which rows are read here and there


class StoredChunk(NamedTuple):
    """What of a chunk stays in memory."""

    facts: np.ndarray  # (rows,) of FACTS
    names: list[tuple[str, tuple[str, ...], str, str]]  # reason, repairs, topic and benchmark of each row; '' for none
    keys: np.ndarray  # (kept rows, BANDS) as `band_keys` has them


def store_chunk(
    path: Path, outcomes: Sequence[Outcome], questions: "Questions | None", near_duplicates: bool
) -> StoredChunk:
    """Writes the rows of a chunk: those that the rules keep, sorted by id, and then the others.

    Looks for benchmark questions and hashes for near duplicates at once, while the texts are at hand.
    """
    import pyarrow

    rows = [outcome.kept or NOTHING for outcome in outcomes]
    texts = [[text for each in row.rounds for text in each[:2]] for row in rows]
    hits = questions.find(texts) if questions else [None] * len(rows)
    facts = np.zeros(len(rows), dtype=FACTS)
    facts["id"] = [bytes.fromhex(outcome.id) for outcome in outcomes]
    facts["position"] = [outcome.position for outcome in outcomes]
    facts["read_rounds"] = [outcome.rounds for outcome in outcomes]
    facts["rounds"] = [len(row.rounds) for row in rows]
    facts["characters"] = [sum(map(len, turns)) for turns in texts]
    facts["traditional"] = [outcome.traditional for outcome in outcomes]
    facts["system"] = [bool(row.system) for row in rows]
    facts["untrained"] = [not all(each.train for each in row.rounds) for row in rows]
    facts["steps"] = [any(each.steps for each in row.rounds) for row in rows]
    order = np.lexsort((facts["id"], facts["rounds"] == 0))
    facts["place"][order] = np.arange(len(rows))
    told = [
        outcome.drop.evidence if outcome.drop else f"{hit[0]} ({hit[1]:.2f}): {turns[0][:160]}" if hit else ""
        for outcome, hit, turns in zip(outcomes, hits, texts, strict=True)
    ]
    columns = conversation_columns(rows)
    table = pyarrow.table(
        [*(columns[name] for name in TEXTS), pyarrow.array(told, pyarrow.string())], [*TEXTS, "evidence"]
    )
    with pyarrow.ipc.new_file(path, table.schema) as file:
        file.write_table(table.take(order).combine_chunks())
    names = [
        (
            outcome.drop.reason if outcome.drop else "",
            outcome.repaired,
            outcome.topic,
            hit[0].partition("/")[0] if hit else "",
        )
        for outcome, hit in zip(outcomes, hits, strict=True)
    ]
    kept = ["\n".join(turns) for turns in texts if turns] if near_duplicates else []
    return StoredChunk(facts, names, band_keys(kept))


def conversation_columns(rows: Sequence[Conversation]) -> dict[str, "pyarrow.Array"]:
    """The columns of conversations that stand in conversations.parquet, but for the clusters.

    `train`: whether each round's answer is trained; `steps`: the tool calls between each round's prompt and answer.
    """
    import pyarrow

    text = pyarrow.string()
    rounds = [each for row in rows for each in row.rounds]
    contents = pyarrow.array([part for each in rounds for part in each[:2]], text)
    roles = pyarrow.array(["user", "assistant"]).take(pyarrow.array(np.arange(len(contents)) % 2))
    of_rounds = np.cumsum([0, *(len(row.rounds) for row in rows)], dtype=np.int32)

    def lists(values: "pyarrow.Array", width: int = 1) -> "pyarrow.Array":
        return pyarrow.ListArray.from_arrays(pyarrow.array(of_rounds * width, pyarrow.int32()), values)

    return {
        "id": pyarrow.array([row.id for row in rows], text),
        "source": pyarrow.array([row.source for row in rows], text),
        "position": pyarrow.array([row.position for row in rows], pyarrow.int64()),
        "messages": lists(pyarrow.StructArray.from_arrays([roles, contents], ["role", "content"]), 2),
        "system": pyarrow.array([row.system for row in rows], text),
        "train": lists(pyarrow.array([each.train for each in rounds], pyarrow.bool_())),
        "steps": lists(pyarrow.array([each.steps for each in rounds], text)),
        "tools": pyarrow.array([row.tools for row in rows], text),
    }


class Names:
    """Numbers for names, in the order in which they are first met; `nothing` is 0."""

    def __init__(self, nothing: object = "") -> None:
        self.numbers = {nothing: 0}

    def __call__(self, name: object) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def __iter__(self) -> Iterator:
        return iter(self.numbers)

    def counts(self, numbers: np.ndarray) -> dict:
        """How many times each name is met, of those that are."""
        counts = np.bincount(numbers, minlength=len(self.numbers)).tolist()
        return {name: count for name, count in zip(self.numbers, counts, strict=True) if count}


class RowStore:
    """All rows in the order in which they were read; a row is known by its number."""

    def __init__(self, folder: Path, near_duplicates: bool) -> None:
        self.folder = folder
        self.sources, self.reasons, self.topics, self.benchmarks = Names(), Names(), Names(), Names()
        self.repairs = Names(())
        self.chunks: list[np.ndarray] = []
        self.bands = [folder / f"band_{band:02}" for band in range(BANDS if near_duplicates else 0)]

    def add(self, source: str, chunk: StoredChunk) -> None:
        """Takes what `store_chunk` returns, one chunk behind the other."""
        chunk.facts["chunk"] = len(self.chunks)
        chunk.facts["source"] = self.sources(source)
        codes = (self.reasons, self.repairs, self.topics, self.benchmarks)
        for field, code, names in zip(CODED, codes, zip(*chunk.names, strict=True), strict=True):
            chunk.facts[field] = list(map(code, names))
        for path, keys in zip(self.bands, chunk.keys.T, strict=False):
            with open(path, "ab") as file:
                file.write(keys.tobytes())
        self.chunks.append(chunk.facts)

    def complete(self) -> None:
        """No chunk comes any more: `facts` (N,) are those of all rows."""
        self.facts = np.concatenate([*self.chunks, np.zeros(0, dtype=FACTS)])
        self.chunks.clear()
        self.hashed = self.kept()
        self.cluster = np.arange(len(self.facts))  # (N,) the row with the smallest id in the row's cluster
        self.stays = np.full(len(self.facts), -1)  # (N,) the row for which a duplicate goes
        self.similarity = np.zeros(len(self.facts))  # (N,) to it

    def kept(self) -> np.ndarray:
        """Rows that are not dropped so far."""
        return np.flatnonzero(self.facts["reason"] == 0)

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """Drops rows for one reason."""
        self.facts["reason"][rows] = self.reasons(reason)

    def sorted(self, rows: np.ndarray, *fields: str) -> np.ndarray:
        """Rows by these fields, then by source in the order of the names, then by position."""
        names = list(self.sources)
        rank = np.array([sorted(names).index(name) for name in names])
        facts = self.facts[rows]
        last = [facts["position"], rank[facts["source"]]]
        return rows[np.lexsort([*last, *(facts[field] for field in fields)])]

    def band_keys(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """(N,) keys of each band, of N rows that their own rules keep."""
        chosen = np.searchsorted(self.hashed, rows)
        for path in self.bands:
            yield (np.fromfile(path, dtype=np.uint64)[chosen] if path.exists() else np.empty(0, dtype=np.uint64))

    def texts(self, rows: np.ndarray) -> "StoredTexts":
        """The texts of rows."""
        return StoredTexts(self.folder, self.facts["chunk"][rows], self.facts["place"][rows])

    def ids(self, rows: np.ndarray) -> "pyarrow.Array":
        """Content ids as 32 hexadecimal digits."""
        import pyarrow

        digits = self.facts["id"][rows].tobytes().hex().encode()
        ends = np.arange(len(rows) + 1, dtype=np.int32) * 32
        return pyarrow.StringArray.from_buffers(len(rows), pyarrow.py_buffer(ends), pyarrow.py_buffer(digits))

    def names(self, rows: np.ndarray) -> "pyarrow.Array":
        """Sources of rows."""
        import pyarrow

        return pyarrow.array(list(self.sources)).take(pyarrow.array(self.facts["source"][rows]))

    def place(self, row: int) -> str:
        """Source and position of a row."""
        return f"{list(self.sources)[self.facts['source'][row]]} {self.facts['position'][row]}"

    def conversation(self, row: int) -> Conversation:
        """A row that its own rules keep."""
        fact = self.facts[row]
        found = open_chunk(self.folder, int(fact["chunk"])).slice(int(fact["place"]), 1).to_pylist()[0]
        texts = [message["content"] for message in found["messages"]]
        rounds = map(Round, texts[::2], texts[1::2], found["train"], found["steps"])
        source = list(self.sources)[fact["source"]]
        return Conversation(source, int(fact["position"]), tuple(rounds), found["system"], found["tools"])

    def evidence(self, row: int) -> str:
        """Why a row is dropped, or what of a benchmark it holds."""
        fact = self.facts[row]
        if (stays := self.stays[row]) >= 0:
            near = f" (Jaccard {self.similarity[row]:.3f})" if self.similarity[row] else ""
            return f"{self.place(stays)}{near}: {self._prompt(fact)[:120]}"
        if fact["reason"] == self.reasons("not_taken"):
            return self._prompt(fact)[:160]
        return open_chunk(self.folder, int(fact["chunk"])).column("evidence")[int(fact["place"])].as_py()

    def _prompt(self, fact: np.void) -> str:
        return turns(self.folder, int(fact["chunk"]), int(fact["place"]))[0]

    def columns(self, rows: np.ndarray, names: Sequence[str]) -> "pyarrow.Table":
        """Stored columns of rows, in their order."""
        import pyarrow

        facts = self.facts[rows]
        order = np.lexsort((facts["place"], facts["chunk"]))
        chunks, places = facts["chunk"][order], facts["place"][order]
        starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        parts = [
            mapped(self.folder, int(chunks[start])).select(names).take(pyarrow.array(places[start:end]))
            for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)
        ]
        back = np.empty(len(rows), dtype=np.int64)
        back[order] = np.arange(len(rows))
        return pyarrow.Table.from_batches(parts).combine_chunks().take(back)


class StoredTexts(Sequence):
    """The turns of each row as one text, read when it is asked for."""

    def __init__(self, folder: Path, chunks: np.ndarray, places: np.ndarray) -> None:
        self.folder, self.chunks, self.places = folder, chunks, places

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, rows):
        if isinstance(rows, np.ndarray):
            return StoredTexts(self.folder, self.chunks[rows], self.places[rows])
        return "\n".join(turns(self.folder, int(self.chunks[rows]), int(self.places[rows])))


def turns(folder: Path, chunk: int, place: int) -> list[str]:
    """Prompts and answers of a row."""
    messages = open_chunk(folder, chunk).column("messages").slice(place, 1).flatten()
    return messages.field("content").to_pylist()


def chunk_file(folder: Path, chunk: int) -> Path:
    """The file of a chunk."""
    return folder / f"chunk_{chunk:06}.arrow"


def mapped(folder: Path, chunk: int) -> "pyarrow.RecordBatch":
    """The rows of a chunk, mapped from its file."""
    import pyarrow

    with pyarrow.memory_map(str(chunk_file(folder, chunk))) as file:
        return pyarrow.ipc.open_file(file).get_batch(0)


open_chunk = lru_cache(maxsize=OPEN)(mapped)
