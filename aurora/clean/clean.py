"""Clean: every row of every source is kept, repaired or dropped with a reason, and the sums are checked.

What a rule needs to know of one row is done where the row is read, on all cores; what compares rows works on some 80
bytes of each. The texts wait in files, so that memory does not grow with them.
"""

import hashlib
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, starmap
from pathlib import Path

import numpy as np
from tqdm import tqdm

from aurora.clean.accounting import Outcome, account
from aurora.clean.apply_rules import apply_rules
from aurora.clean.clean_page import write_page
from aurora.clean.contamination import Questions, read_questions
from aurora.clean.filters import TRADITIONAL, traditional_share
from aurora.clean.layouts import Layout, advice, column, layout_of
from aurora.clean.near_duplicates import find
from aurora.clean.params import Clean, overridden
from aurora.clean.parse_rows import Drop, Turns, parse
from aurora.clean.read_files import data_files, read_items
from aurora.clean.row_store import RowStore, StoredChunk, chunk_file, store_chunk
from aurora.clean.row_tables import write_conversations, write_dropped
from aurora.clean.topics import names, topic
from aurora.clean.truncation import ends_unmarked
from aurora.core.errors import DataError, ResourceError
from aurora.core.files import write_json
from aurora.core.lifetime import end_with_parent
from aurora.core.manifests import read_manifest
from aurora.core.messages import Conversation
from aurora.sources.source import Source

LOOKED_AT = 2000  # first rows of a source, which show its layout and habits
CHUNK = 2000  # rows given to a process at a time
PROCESSES = 16  # at most: one process reads for all
DISK = 1.5  # bytes of disk for each byte read, where files are not compressed


@dataclass(frozen=True)
class SourceRules:
    """How the rows of one source are read, and the rules for them."""

    source: str
    layout: Layout
    params: Clean
    unmarked: bool  # whether its answers end without a mark by habit
    advice: str = field(default="", compare=False)  # what would fit, where none of its first rows could be read


def rules_of(name: str, format_: str, items: Sequence[object], params: Clean, entry: Source | None) -> SourceRules:
    """The rules of a source, by its entry in params.yaml and its first rows. Raises DataError as `layout_of` does."""
    columns, roles = (entry.columns, entry.roles) if entry else (None, None)
    layout = layout_of(name, format_, items, columns, roles)
    params = overridden(params, entry.clean if entry else None, name)
    read = [turns for turns in (parse(item, layout) for item in items) if isinstance(turns, Turns)]
    answers = [m.content for turns in read for m in turns.messages[-1:] if m.role == "assistant"]
    unmarked = params.truncated_answers and ends_unmarked(answers, params.truncated_from)
    return SourceRules(name, layout, params, unmarked, "" if read else advice(items, layout))


def clean_chunk(rules: SourceRules, start: int, items: list) -> tuple[list[Outcome], Counter[str]]:
    """Outcomes of consecutive rows, and the filled columns that are not read; the unit of work of one process."""
    outcomes = []
    ignored: Counter[str] = Counter()
    for position, item in enumerate(items, start=start):
        turns = parse(item, rules.layout)
        if isinstance(item, dict):
            ignored.update(
                str(key)[:80]
                for key, value in item.items()
                if key not in rules.layout.known and value not in (None, "") and column(key) not in rules.layout.known
            )
        rounds = 0 if isinstance(turns, Drop) else sum(message.role == "user" for message in turns.messages)
        found = apply_rules(turns, rules.params, rules.unmarked)
        kept, drop, traditional = None, found.drop, False
        if not drop:
            texts = [text for each in found.rounds for text in each[:2]]
            traditional = traditional_share(texts) >= TRADITIONAL
            if traditional and rules.params.traditional == "drop":
                drop = Drop("traditional", texts[0][:160])
        if not drop:
            kept = Conversation(rules.source, position, found.rounds, found.system, found.tools)
        named, id_ = (topic(*found.rounds[0][:2]), kept.id) if kept else ("", "")
        outcomes.append(
            Outcome(rules.source, position, rounds, kept, found.repaired, drop, id_, traditional and bool(kept), named)
        )
    return outcomes, ignored


def _chunks(
    folders: Mapping[str, Path], params: Clean, sources: Mapping[str, Source]
) -> Iterator[tuple[SourceRules, int, list]]:
    for name, folder in folders.items():
        manifest, entry = read_manifest(folder), sources.get(name)
        pattern = entry.files if entry else None
        paths = [file["path"] for file in manifest["files"]]
        chosen = data_files(paths, pattern)
        if not chosen:
            what = f"matches files: {pattern}" if pattern else "holds rows"
            raise DataError(f"{folder}: none of its files {what}; there is {', '.join(paths[:5])}")
        items = chain.from_iterable(read_items(folder / path) for path in chosen)
        first = list(islice(items, LOOKED_AT))
        if not first:
            continue
        rules, start, items = rules_of(name, manifest["format"], first, params, entry), 0, chain(first, items)
        del first
        while chunk := list(islice(items, CHUNK)):
            yield rules, start, chunk
            start += len(chunk)


_QUESTIONS: Questions | None = None  # of this process; too many to be sent with each chunk


def _start(questions: Questions | None, child: bool = False) -> None:
    global _QUESTIONS
    _QUESTIONS = questions
    if child:
        end_with_parent()


def _store(
    path: Path, rules: SourceRules, start: int, items: list, near_duplicates: bool
) -> tuple[SourceRules, StoredChunk, Counter[str]]:
    """The unit of work of one process."""
    outcomes, ignored = clean_chunk(rules, start, items)
    return rules, store_chunk(path, outcomes, _QUESTIONS, near_duplicates), ignored


@contextmanager
def all_cores(chunks: Iterator, questions: Questions | None) -> Iterator[tuple[Iterator, Callable]]:
    """The chunks, and a `starmap` on all cores that this process may use; one chunk stays in this process.

    Raises ResourceError where a process is ended from outside.
    """
    first = list(islice(chunks, 2))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(first) < 2 or cores == 1:
        _start(questions)
        yield chain(first, chunks), starmap
        return
    cores = min(PROCESSES, cores)
    with ProcessPoolExecutor(cores, initializer=_start, initargs=(questions, True)) as pool:

        def run(function: Callable, calls: Iterable[tuple]) -> Iterator:
            waiting: deque = deque()
            for call in calls:
                waiting.append(pool.submit(function, *call))
                if len(waiting) > 2 * cores:  # bounds the rows that are in memory twice
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield chain(first, chunks), run
        except BrokenProcessPool:
            raise ResourceError(
                "clean: one of its processes was ended from outside, as a system does that lacks memory; "
                "run dvc repro again, on fewer cores (taskset) if memory is short"
            ) from None


def clean(
    folders: Mapping[str, Path],
    benchmarks: Iterable[Path],
    params: Clean,
    sources: Mapping[str, Source],
    out: Path,
    spill: Path,
) -> dict:
    """Reads all rows, applies the rules and removes duplicates, of the sources `folders` (name -> folder, in order of preference).

    Writes conversations.parquet and report.html (where a row is left), dropped.parquet and metrics.json into the
    folder `out`; returns the metrics. The texts wait in the empty folder `spill`. `sources` are the entries of
    params.yaml, by name; a source without one is read as its manifest says.
    Raises DataError for a file that cannot be read, and if the account does not add up; ResourceError as `all_cores`
    does.
    """
    store, facts = RowStore(spill, params.near_duplicates is not None), {}
    least, questions = params.contamination, []
    if least is not None:
        questions = [question for folder in benchmarks for question in read_questions(folder)]
    chunks = _chunks(folders, params, sources)
    with all_cores(chunks, None if least is None else Questions(questions, least)) as (chunks, run):
        ignored, advised = _read(store, chunks, run)
        if params.exact_duplicates:
            _drop_exact_duplicates(store)
        if least is not None:
            facts["contamination"] = {"questions": len(questions)} | _drop_contaminated(store)
        if params.near_duplicates is not None:
            facts["near_duplicates"] = _drop_near_duplicates(store, params.near_duplicates, run)
    for name, entry in sources.items():
        if entry.take is not None and name in folders:
            _drop_not_taken(store, name, entry.take)
    expected = {name: read_manifest(folder)["rows"] for name, folder in folders.items()}
    repeats = {name: entry.repeat for name, entry in sources.items()}
    metrics = account(store, expected, ignored, repeats, advised) | facts
    rows = store.sorted(store.kept(), "id")
    topics = store.topics.counts(store.facts["topic"][rows])
    metrics |= {"topics": {name: topics.get(name, 0) for name in names()}}
    write_dropped(out / "dropped.parquet", store)
    if len(rows):
        write_conversations(out / "conversations.parquet", store, rows, repeats)
        write_page(out / "report.html", store, rows, metrics)
    write_json(out / "metrics.json", metrics)
    return metrics


def say_disk(folders: Iterable[Path], spill: Path) -> None:
    """Says on stderr how much disk clean takes where `spill` lies. Raises ResourceError where there is less."""
    read = sum(file["bytes"] for folder in folders for file in read_manifest(folder)["files"])
    needed, free = DISK * read, shutil.disk_usage(spill).free
    told = (
        f"takes up to {needed / 1e9:.1f} GB of disk for {read / 1e9:.1f} GB of sources, more where they are compressed"
    )
    if needed > free:
        raise ResourceError(f"clean: {told}, and {spill.parent} has {free / 1e9:.1f} GB free; free some")
    print(f"clean: {told}; {free / 1e9:.1f} GB are free", file=sys.stderr)


def _read(store: RowStore, chunks: Iterator, run: Callable) -> tuple[dict[str, Counter[str]], dict[str, str]]:
    """Stores all rows; returns, by source, the columns that are not read, and the advice."""
    ignored: dict[str, Counter[str]] = {}
    advised: dict[str, str] = {}
    near = bool(store.bands)
    calls = ((chunk_file(store.folder, number), *chunk, near) for number, chunk in enumerate(chunks))
    with tqdm(desc="clean: rows", unit=" rows", leave=False) as progress:
        for rules, stored, columns in run(_store, calls):
            store.add(rules.source, stored)
            ignored.setdefault(rules.source, Counter()).update(columns)
            advised[rules.source] = rules.advice
            progress.update(len(stored.facts))
    store.complete()
    return ignored, advised


def _drop_exact_duplicates(store: RowStore) -> None:
    rows = store.kept()
    _, first, same = np.unique(store.facts["id"][rows], return_index=True, return_inverse=True)
    stays = rows[first][same]
    gone = stays != rows
    store.stays[rows[gone]] = stays[gone]
    store.drop(rows[gone], "exact_duplicate")


def _drop_contaminated(store: RowStore) -> dict:
    rows = store.kept()
    rows = rows[store.facts["benchmark"][rows] > 0]
    store.drop(rows, "contaminated")
    found = store.benchmarks.counts(store.facts["benchmark"][rows])
    return {"rows": len(rows)} | dict(sorted(found.items()))


def _drop_near_duplicates(store: RowStore, threshold: float, run: Callable) -> dict:
    """Drops near duplicates, and gives each row the smallest id of its cluster."""
    rows = store.kept()
    found = find(store.band_keys(rows), store.texts(rows), threshold, run)
    order = np.argsort(store.facts["id"][rows], kind="stable")
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    least = rank.copy()
    np.minimum.at(least, found.cluster, rank)
    store.cluster[rows] = rows[order[least[found.cluster]]]
    gone = found.kept_for >= 0
    store.stays[rows[gone]] = rows[found.kept_for[gone]]
    store.similarity[rows[gone]] = found.similarity[gone]
    store.drop(rows[gone], "near_duplicate")
    sizes = np.bincount(found.cluster)
    return {
        "clusters": int((sizes > 1).sum()),
        "rows_in_clusters": int(sizes[sizes > 1].sum()),
        "pairs": found.pairs,
        "candidates": found.candidates,
    }


def _drop_not_taken(store: RowStore, source: str, take: int | float) -> None:
    """Leaves `take` rows, or a share, of a source's kept ones; a hash of their ids chooses them."""
    rows = store.kept()
    rows = rows[store.facts["source"][rows] == store.sources(source)]
    ids = store.ids(rows).to_pylist()
    hashes = np.array([hashlib.sha256(f"take {id_}".encode()).digest() for id_ in ids], dtype="S32")
    if isinstance(take, int):
        gone = np.argsort(hashes, kind="stable")[take:]
    else:
        gone = np.flatnonzero([int.from_bytes(each[:8]) >= take * 2**64 for each in hashes.tolist()])
    store.drop(rows[gone], "not_taken")
