"""Clean: every row of every source is kept, repaired or dropped with a reason, and the sums are checked."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from aurora.clean.accounting import Outcome, account
from aurora.clean.apply_rules import apply_rules
from aurora.clean.filters import TRADITIONAL, traditional_share
from aurora.clean.layouts import Layout, advice, column, layout_of
from aurora.clean.params import Clean, overridden
from aurora.clean.parse_rows import Drop, Turns, parse
from aurora.clean.read_files import data_files, read_items
from aurora.clean.topics import names, topic
from aurora.clean.truncation import ends_unmarked
from aurora.core.errors import DataError
from aurora.core.lifetime import end_with_parent
from aurora.core.manifests import read_manifest
from aurora.core.messages import Conversation
from aurora.sources.source import Source

CHUNK = 2000  # rows given to a process at a time; the first of a source show its layout and habits


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Kept conversations with their clusters, dropped rows, and the account."""

    kept: list[tuple[Conversation, str]]  # sorted by id; the text is the cluster's id
    dropped: list[Outcome]
    topics: list[str]  # of the kept rows, in their order
    metrics: dict


@dataclass(frozen=True)
class SourceRules:
    """How the rows of one source are read, and the rules for them."""

    source: str
    layout: Layout
    params: Clean
    unmarked: bool  # whether its answers end without a mark by habit
    advice: str = field(
        default="", compare=False
    )  # what would fit, where none of its first rows could be read


def rules_of(
    name: str, format_: str, items: Sequence[object], params: Clean, entry: Source | None
) -> SourceRules:
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
                if key not in rules.layout.known
                and value not in (None, "")
                and column(key) not in rules.layout.known
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
            Outcome(
                rules.source,
                position,
                rounds,
                kept,
                found.repaired,
                drop,
                id_,
                traditional and bool(kept),
                named,
            )
        )
    return outcomes, ignored


def cleaned_chunks(
    folders: Mapping[str, Path], params: Clean, sources: Mapping[str, Source]
) -> Iterator[tuple[SourceRules, list[Outcome], Counter[str]]]:
    """Outcomes of all rows, in the order of the folders and of their files, on all cores this process may use."""
    chunks = _chunks(folders, params, sources)
    first = list(islice(chunks, 2))
    processes = min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if len(first) < 2 or processes == 1:
        for chunk in chain(first, chunks):
            yield chunk[0], *clean_chunk(*chunk)
        return
    with ProcessPoolExecutor(processes, initializer=end_with_parent) as pool:
        waiting: deque = deque()
        for chunk in chain(first, chunks):
            waiting.append((chunk[0], pool.submit(clean_chunk, *chunk)))
            if len(waiting) > 2 * processes:  # bounds the rows that are in memory twice
                rules, future = waiting.popleft()
                yield rules, *future.result()
        while waiting:
            rules, future = waiting.popleft()
            yield rules, *future.result()


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
        rules, start = None, 0
        while chunk := list(islice(items, CHUNK)):
            rules = rules or rules_of(name, manifest["format"], chunk, params, entry)
            yield rules, start, chunk
            start += len(chunk)


def clean(
    folders: Mapping[str, Path],
    benchmarks: Iterable[Path],
    params: Clean,
    sources: Mapping[str, Source] | None = None,
) -> Cleaned:
    """Reads all rows, applies the rules and removes duplicates, of the sources `folders` (name -> folder, in order of preference).

    `sources` are the entries of params.yaml, by name; a source without one is read as its manifest says.
    Raises DataError for a file that cannot be read, and if the account does not add up.
    """
    sources = sources or {}
    outcomes: list[Outcome] = []
    ignored: dict[str, Counter[str]] = {}
    advised: dict[str, str] = {}
    with tqdm(desc="clean: rows", unit=" rows", leave=False) as progress:
        for rules, chunk, columns in cleaned_chunks(folders, params, sources):
            outcomes += chunk
            ignored.setdefault(rules.source, Counter()).update(columns)
            advised[rules.source] = rules.advice
            progress.update(len(chunk))
    facts: dict = {}
    if params.exact_duplicates:
        outcomes = _without_exact_duplicates(outcomes)
    if params.contamination is not None:
        outcomes = _without_contamination(outcomes, benchmarks, params.contamination, facts)
    outcomes, clusters = _without_near_duplicates(outcomes, params.near_duplicates, facts)
    for name, entry in sources.items():
        if entry.take is not None and name in folders:
            outcomes = _taken(outcomes, name, entry.take)
    kept = sorted(
        (
            (outcome.id, outcome.kept, cluster, outcome.topic)
            for outcome, cluster in zip(outcomes, clusters, strict=True)
            if outcome.kept
        ),
        key=lambda row: (row[0], row[1].source, row[1].position),
    )
    expected = {name: read_manifest(folder)["rows"] for name, folder in folders.items()}
    topics = [row[3] for row in kept]
    counts = Counter(topics)
    repeats = {name: entry.repeat for name, entry in sources.items()}
    metrics = account(outcomes, expected, ignored, repeats, advised) | facts
    metrics |= {"topics": {name: counts[name] for name in names()}}
    dropped = [outcome for outcome in outcomes if outcome.drop]
    if len(kept) + len(dropped) != metrics["total"]["read"]:
        raise DataError(
            f"clean: kept {len(kept)} + dropped {len(dropped)} is not read {metrics['total']['read']}"
        )
    return Cleaned([row[1:3] for row in kept], dropped, topics, metrics)


def _taken(outcomes: list[Outcome], source: str, take: int | float) -> list[Outcome]:
    """The outcomes with `take` rows, or a share, of a source's kept ones; a hash of their ids chooses them."""

    def order(outcome: Outcome) -> str:
        return hashlib.sha256(f"take {outcome.id}".encode()).hexdigest()

    kept = sorted(
        (outcome for outcome in outcomes if outcome.source == source and not outcome.drop), key=order
    )
    if isinstance(take, int):
        gone = kept[take:]
    else:
        gone = [outcome for outcome in kept if int(order(outcome)[:16], 16) >= take * 2**64]
    places = {outcome.position for outcome in gone}
    return [
        _dropped(outcome, "not_taken", _texts(outcome)[0][:160])
        if outcome.source == source and not outcome.drop and outcome.position in places
        else outcome
        for outcome in outcomes
    ]


def _texts(outcome: Outcome) -> list[str]:
    """Prompts and answers of a kept row."""
    return [text for each in (outcome.kept.rounds if outcome.kept else ()) for text in each[:2]]


def _dropped(outcome: Outcome, reason: str, evidence: str) -> Outcome:
    return Outcome(
        outcome.source, outcome.position, outcome.rounds, None, outcome.repaired, Drop(reason, evidence)
    )


def _without_exact_duplicates(outcomes: list[Outcome]) -> list[Outcome]:
    first: dict[str, Outcome] = {}
    result = []
    for outcome in outcomes:
        if not outcome.drop:
            stays = first.setdefault(outcome.id, outcome)
            if stays is not outcome:
                outcome = _dropped(
                    outcome,
                    "exact_duplicate",
                    f"{stays.source} {stays.position}: {_texts(outcome)[0][:120]}",
                )
        result.append(outcome)
    return result


def _without_contamination(
    outcomes: list[Outcome], benchmarks: Iterable[Path], least: float, facts: dict
) -> list[Outcome]:
    from aurora.clean.contamination import Questions, read_questions

    questions = [question for folder in benchmarks for question in read_questions(folder)]
    index = Questions(questions, least)
    result = list(outcomes)
    found: Counter[str] = Counter()
    rows = [number for number, outcome in enumerate(outcomes) if not outcome.drop]
    with tqdm(total=len(rows), desc="clean: benchmark questions", unit=" rows", leave=False) as progress:
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            texts = [_texts(outcomes[number]) for number in part]
            for number, hit in zip(part, index.find(texts), strict=True):
                if hit:
                    place, share = hit
                    found[place.split("/", 1)[0]] += 1
                    prompt = _texts(outcomes[number])[0]
                    result[number] = _dropped(
                        outcomes[number], "contaminated", f"{place} ({share:.2f}): {prompt[:160]}"
                    )
            progress.update(len(part))
    facts["contamination"] = {"questions": len(questions), "rows": sum(found.values())} | dict(
        sorted(found.items())
    )
    return result


def _without_near_duplicates(
    outcomes: list[Outcome], threshold: float | None, facts: dict
) -> tuple[list[Outcome], list[str]]:
    """Outcomes without near duplicates, and each one's cluster id ('' for a dropped row)."""
    from aurora.clean.near_duplicates import find

    rows = [number for number, outcome in enumerate(outcomes) if not outcome.drop]
    ids = [outcome.id for outcome in outcomes]
    clusters = list(ids)
    if threshold is None:
        return outcomes, clusters
    texts = ["\n".join(_texts(outcomes[number])) for number in rows]
    found = find(texts, threshold)
    smallest: dict[int, str] = {}
    for number, root in zip(rows, found.cluster, strict=True):
        smallest[root] = min(ids[number], smallest.get(root, ids[number]))
    for number, root in zip(rows, found.cluster, strict=True):
        clusters[number] = smallest[root]
    result = list(outcomes)
    for row, (stays, similarity) in found.kept_for.items():
        kept = outcomes[rows[stays]]
        result[rows[row]] = _dropped(
            outcomes[rows[row]],
            "near_duplicate",
            f"{kept.source} {kept.position} (Jaccard {similarity:.3f}): {_texts(outcomes[rows[row]])[0][:120]}",
        )
    sizes = Counter(found.cluster)
    facts["near_duplicates"] = {
        "clusters": sum(size > 1 for size in sizes.values()),
        "rows_in_clusters": sum(size for size in sizes.values() if size > 1),
        "pairs": found.pairs,
        "candidates": found.candidates,
    }
    return result, clusters
