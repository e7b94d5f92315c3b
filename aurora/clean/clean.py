"""Clean: every row of every source is kept, mended or dropped with a reason, and the sums are checked."""

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from aurora.clean.accounting import Outcome, account
from aurora.clean.apply_rules import judge
from aurora.clean.filters import TRADITIONAL, traditional_share
from aurora.clean.params import Clean
from aurora.clean.parse_rows import Drop, parse
from aurora.clean.read_files import read_items
from aurora.clean.topics import names, topic
from aurora.core.errors import DataError
from aurora.core.lifetime import end_with_parent
from aurora.core.manifests import read_manifest
from aurora.core.messages import Conversation, content_id

CHUNK = 2000  # rows given to a process at a time


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Kept conversations with their clusters, dropped rows, and the account."""

    kept: list[tuple[Conversation, str]]  # sorted by id; the text is the cluster's id
    dropped: list[Outcome]
    topics: list[str]  # of the kept rows, in their order
    metrics: dict


def judge_chunk(source: str, format_: str, start: int, items: list, params: Clean) -> list[Outcome]:
    """Outcomes of consecutive rows; the unit of work of one process."""
    outcomes = []
    for position, item in enumerate(items, start=start):
        turns = parse(item, format_)
        rounds = 0 if isinstance(turns, Drop) else sum(message.role == "user" for message in turns.messages)
        messages, mended, drop = judge(turns, params)
        traditional = False
        if messages:
            traditional = traditional_share([message.content for message in messages]) >= TRADITIONAL
            if traditional and params.traditional == "drop":
                drop, messages = Drop("traditional", messages[0].content[:160]), ()
        named = topic(messages[0].content, messages[1].content) if messages else ""
        id_ = content_id(messages) if messages else ""
        outcomes.append(Outcome(source, position, rounds, messages, mended, drop, id_, traditional, named))
    return outcomes


def judged(folders: Iterable[Path], params: Clean) -> Iterator[list[Outcome]]:
    """Outcomes of all rows, in the order of the folders and of their files, on all cores this process may use."""
    chunks = _chunks(folders)
    first = list(islice(chunks, 2))
    processes = min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if len(first) < 2 or processes == 1:
        for chunk in [*first, *chunks]:
            yield judge_chunk(*chunk, params)
        return
    with ProcessPoolExecutor(processes, initializer=end_with_parent) as pool:
        waiting: deque = deque()
        for chunk in chain(first, chunks):
            waiting.append(pool.submit(judge_chunk, *chunk, params))
            if len(waiting) > 2 * processes:  # bounds the rows that are in memory twice
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _chunks(folders: Iterable[Path]) -> Iterator[tuple[str, str, int, list]]:
    for folder in folders:
        manifest = read_manifest(folder)
        start = 0
        for file in manifest["files"]:
            items = read_items(folder / file["path"])
            while chunk := list(islice(items, CHUNK)):
                yield manifest["source"], manifest["format"], start, chunk
                start += len(chunk)


def clean(folders: Mapping[str, Path], benchmarks: Iterable[Path], params: Clean) -> Cleaned:
    """Reads, judges and compares all rows of the sources `folders` (name -> folder, in order of preference).

    Raises DataError for a file that cannot be read, and if the account does not add up.
    """
    outcomes: list[Outcome] = []
    with tqdm(desc="clean: rows", unit=" rows", leave=False) as progress:
        for chunk in judged(folders.values(), params):
            outcomes += chunk
            progress.update(len(chunk))
    facts: dict = {}
    if params.exact_duplicates:
        outcomes = _without_exact_duplicates(outcomes)
    if params.contamination is not None:
        outcomes = _without_contamination(outcomes, benchmarks, params.contamination, facts)
    outcomes, clusters = _without_near_duplicates(outcomes, params.near_duplicates, facts)
    kept = sorted(
        (
            (
                outcome.id,
                Conversation(outcome.source, outcome.position, outcome.messages),
                cluster,
                outcome.topic,
            )
            for outcome, cluster in zip(outcomes, clusters, strict=True)
            if not outcome.drop
        ),
        key=lambda row: (row[0], row[1].source, row[1].position),
    )
    expected = {name: read_manifest(folder)["rows"] for name, folder in folders.items()}
    topics = [row[3] for row in kept]
    counts = Counter(topics)
    metrics = account(outcomes, expected) | facts | {"topics": {name: counts[name] for name in names()}}
    dropped = [outcome for outcome in outcomes if outcome.drop]
    if len(kept) + len(dropped) != metrics["total"]["read"]:
        raise DataError(
            f"clean: kept {len(kept)} + dropped {len(dropped)} is not read {metrics['total']['read']}"
        )
    return Cleaned([row[1:3] for row in kept], dropped, topics, metrics)


def _dropped(outcome: Outcome, reason: str, evidence: str) -> Outcome:
    return Outcome(
        outcome.source, outcome.position, outcome.rounds, (), outcome.mended, Drop(reason, evidence)
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
                    f"{stays.source} {stays.position}: {outcome.messages[0].content[:120]}",
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
            texts = [[message.content for message in outcomes[number].messages] for number in part]
            for number, hit in zip(part, index.find(texts), strict=True):
                if hit:
                    place, share = hit
                    found[place.split("/", 1)[0]] += 1
                    prompt = outcomes[number].messages[0].content
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
    texts = ["\n".join(message.content for message in outcomes[number].messages) for number in rows]
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
            f"{kept.source} {kept.position} (Jaccard {similarity:.3f}): {outcomes[rows[row]].messages[0].content[:120]}",
        )
    sizes = Counter(found.cluster)
    facts["near_duplicates"] = {
        "clusters": sum(size > 1 for size in sizes.values()),
        "rows_in_clusters": sum(size for size in sizes.values() if size > 1),
        "pairs": found.pairs,
        "candidates": found.candidates,
    }
    return result, clusters
