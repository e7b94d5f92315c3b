"""Benchmark questions, and the conversations that contain one."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aurora.benchmarks import read
from aurora.clean.shingles import BORDER, characters, joined, ngrams, windows
from aurora.core.errors import DataError
from aurora.core.manifests import read_manifest

CHINESE, LATIN = 8, 32  # characters of an n-gram; 32 Latin letters are five to seven words
SHORT = 16  # the same for a Latin unit of fewer than LEAST_LATIN characters: a short question with its options
LEAST_LATIN = 48
ALONE = {True: 20, False: 60}  # characters of a stem, in Chinese or not, from which it is more than a noun phrase
WITH_OPTIONS = 16  # the same of a stem and its options
# A short stem that is a question or a sentence to complete, and no term: it has a word that no term has.
ASKS = re.compile(
    r"[?？，,=“”‘’]|_+[^\s_]*[^\W_]|[的是为于在有由被应将与和会以用称属指出可不从对其向及把使占哪何么几要能让给到得需]|\S+ \S+ \S+ \S+"
)
SPLITS = ("dev", "val", "test")
BITS = 24  # a first look in a table of 2^24 flags spares most of the binary searches


@dataclass(frozen=True, slots=True)
class Question:
    """One benchmark question."""

    place: str  # benchmark, file and 0-based row
    text: str
    options: tuple[str, ...]


def read_questions(folder: Path) -> list[Question]:
    """All questions of the dev, val and test splits below a fetched benchmark.

    Raises DataError if a file has no question column or no question.
    """
    manifest = read_manifest(folder)
    questions: list[Question] = []
    for path in sorted(folder.rglob("*.csv")):
        inside = path.relative_to(folder)
        if any(part in SPLITS for part in inside.parts):
            questions += _read(path, f"{folder.name}/{inside.as_posix()}", manifest["format"])
    if not questions:
        raise DataError(f"{folder}: no question in dev, val or test; fetch it again: dvc repro -f fetch@{folder.name}")
    return questions


def _read(path: Path, place: str, format_: str) -> list[Question]:
    rows = read.read_questions(path, read.LAYOUTS[format_])
    return [Question(f"{place}:{number}", row.text, row.options) for number, row in enumerate(rows)]


class Questions:
    """An index of question n-grams, asked for many conversations at a time.

    Only letters, digits and characters count (aurora/clean/shingles.py). A question in Chinese gives
    n-grams of 8 characters, another one of 32, or of 16 if it is short. A conversation contains a question
    if it has `share` of its n-grams. A question that is short (传染性单核细胞增多症____), or whose words serve
    several questions (下列说法正确的是), counts with its options alone, since any text on its subject has its
    words; but where a prompt is that question and nothing else, and asks (强奸属于____, not 传染性单核细胞增多症____), it
    is the question.
    """

    def __init__(self, questions: Sequence[Question], share: float) -> None:
        self.share = share
        self.places: list[str] = []
        self.whole: dict[bytes, str] = {}
        stems = [characters(question.text) for question in questions]
        times: dict[bytes, set[tuple[str, ...]]] = {}
        for question, stem in zip(questions, stems, strict=True):
            times.setdefault(stem.tobytes(), set()).add(question.options)
        units: dict[int, list[np.ndarray]] = {CHINESE: [], LATIN: [], SHORT: []}
        owners: dict[int, list[int]] = {CHINESE: [], LATIN: [], SHORT: []}
        for question, stem in zip(questions, stems, strict=True):
            for codes in self._units(question, stem, len(times[stem.tobytes()]) > 1):
                n = CHINESE if _chinese(codes) else LATIN if len(codes) >= LEAST_LATIN else SHORT
                units[n].append(codes)
                owners[n].append(len(self.places))
                self.places.append(question.place)
        self.sizes = np.zeros(len(self.places), dtype=np.int64)
        self.index = {n: self._indexed(n, units[n], np.array(owners[n])) for n in units if units[n]}

    def _indexed(
        self, n: int, units: list[np.ndarray], owners: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flags of the first bits, sorted n-grams, and beside each the unit that has it, once; fills `sizes`."""
        lengths = np.array([len(codes) + 1 for codes in units])
        border = np.array([BORDER], dtype=np.uint32)
        flat = np.concatenate([part for codes in units for part in (codes, border)])
        keys, counts = windows(flat, np.cumsum(lengths) - lengths, n)
        owner = np.repeat(owners, counts)
        order = np.argsort(keys, kind="stable")  # owners ascend, and stay ascending beside equal n-grams
        keys, owner = keys[order], owner[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1])
        keys, owner = keys[first], owner[first]
        self.sizes += np.bincount(owner, minlength=len(self.sizes))
        flags = np.zeros(1 << BITS, dtype=bool)
        flags[keys >> np.uint64(64 - BITS)] = True
        return flags, keys, owner

    def _units(self, question: Question, stem: np.ndarray, shared: bool) -> list[np.ndarray]:
        if len(stem) >= ALONE[_chinese(stem)] and not shared:
            return [stem]
        if not shared and ASKS.search(question.text):
            self.whole.setdefault(stem.tobytes(), question.place)
        joined = [
            question.text + "".join(question.options),
            question.text + "".join(f"{letter}{text}" for letter, text in zip("ABCD", question.options, strict=False)),
        ]
        units = [characters(text) for text in joined]
        return [codes for codes in units if len(codes) >= WITH_OPTIONS]

    def find(self, conversations: Sequence[Sequence[str]]) -> list[tuple[str, float] | None]:
        """For each conversation (its turns, the user's first): place of a question it contains and the share of the
        question's n-grams, or None."""
        result: list[tuple[str, float] | None] = [None] * len(conversations)
        best: dict[int, tuple[float, int]] = {}
        flat, starts = joined([turn for turns in conversations for turn in turns])
        owner_of_turn = np.repeat(np.arange(len(conversations)), [len(turns) for turns in conversations])
        for n, (flags, keys, owners) in self.index.items():
            if len(flat) < n:
                continue
            grams = ngrams(flat, n)
            places = np.flatnonzero(flags[grams >> np.uint64(64 - BITS)])
            grams = grams[places]
            left = np.searchsorted(keys, grams)
            hit = keys[np.minimum(left, len(keys) - 1)] == grams
            left, right = left[hit], np.searchsorted(keys, grams[hit], "right")
            rows = owner_of_turn[np.searchsorted(starts, places[hit], "right") - 1]
            hits: dict[int, set[tuple[int, int]]] = {}
            for row, start, end in zip(rows.tolist(), left.tolist(), right.tolist(), strict=True):
                hits.setdefault(row, set()).add((start, end))
            for row, spans in hits.items():
                counts = Counter(owner for start, end in spans for owner in owners[start:end].tolist())
                for owner, count in counts.items():
                    share = count / int(self.sizes[owner])
                    if share >= self.share and (share, -owner) > best.get(row, (0.0, 0)):
                        best[row] = (share, -owner)
        for row, (share, owner) in best.items():
            result[row] = (self.places[-owner], share)
        for row, turns in enumerate(conversations):
            for prompt in turns[::2]:
                if not result[row] and len(prompt) <= 120 and self.whole:
                    place = self.whole.get(characters(prompt).tobytes())
                    result[row] = (place, 1.0) if place else None
        return result


def _chinese(codes: np.ndarray) -> bool:
    """Whether at least a third of the characters are Chinese."""
    return bool(len(codes)) and int(((codes >= 0x3400) & (codes <= 0x9FFF)).sum()) * 3 >= len(codes)
