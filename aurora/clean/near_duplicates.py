"""Near duplicates: MinHash by rensa, LSH bands for candidates, exact Jaccard to decide."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, starmap
from typing import Protocol

import numpy as np

from aurora.clean.shingles import characters, joined, mixed, ngrams, windows

NGRAM = 5  # characters
BANDS, ROWS = 16, 8  # finds 0.95 of the pairs at Jaccard 0.8, all but one in a million at 0.95
SEED = 42
LINKS = 8  # rows that went and still link later ones to their cluster, a bucket; a template has thousands
CHUNK = 4096  # conversations hashed at a time: bounds memory
TOGETHER = 2000  # rows that are compared in one call, if no component has more


class Texts(Protocol):
    """Texts of rows, in memory or in files."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """For each of N rows: the row that it duplicates, and its cluster."""

    kept_for: np.ndarray  # (N,) row that stays for one that goes; -1 for a row that stays
    similarity: np.ndarray  # (N,) Jaccard of the two
    cluster: np.ndarray  # (N,) first row of its cluster; itself where it is alone
    candidates: int  # pairs that share a band and were compared
    pairs: int  # of them, those at or above the threshold


def shingles(text: str) -> np.ndarray:
    """Sorted, distinct hashes of the text's character 5-grams."""
    return np.unique(ngrams(characters(text), NGRAM))


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard similarity of two sorted, distinct arrays; 0 for two empty ones, which say nothing."""
    if not len(left):
        return 0.0
    common = np.count_nonzero(left.take(left.searchsorted(right), mode="clip") == right)
    return common / (len(left) + len(right) - common)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """uint32 (len(texts), BANDS * ROWS): MinHash signatures."""
    from rensa import RMinHash

    result = np.empty((len(texts), BANDS * ROWS), dtype=np.uint32)
    for start in range(0, len(texts), CHUNK):
        part = texts[start : start + CHUNK]
        flat, starts = joined(part)
        grams, counts = windows(flat, starts, NGRAM)  # not distinct: a minimum does not mind
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(grams, offsets, BANDS * ROWS, SEED)
        result[start : start + len(part)] = np.array(matrix.to_rows(), dtype=np.uint32)
        for row in np.flatnonzero(counts == 0).tolist():
            own = shingles(part[row])
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(
                own, np.array([0, len(own)], dtype=np.uint64), BANDS * ROWS, SEED
            )
            result[start + row] = matrix.to_rows()[0]
    return result


def band_keys(texts: Sequence[str]) -> np.ndarray:
    """uint64 (len(texts), BANDS): a hash of each band of the signatures; rows with an equal one are candidates."""
    if not texts:
        return np.empty((0, BANDS), dtype=np.uint64)
    parts = signatures(texts).astype(np.uint64).reshape(len(texts), BANDS, ROWS)
    keys = parts[:, :, 0]
    with np.errstate(over="ignore"):
        for place in range(1, ROWS):
            keys = mixed(keys, parts[:, :, place])
    return keys


def find(bands: Iterable[np.ndarray], texts: Texts, threshold: float, run: Callable = starmap) -> NearDuplicates:
    """Near duplicates among N rows, the first of which stay.

    bands: BANDS arrays (N,) of keys as `band_keys` has them; texts[numbers]: the texts of those rows, a sequence;
    run: `starmap`, or what spreads the calls over processes.

    A row goes if its Jaccard similarity with an earlier row that stays is at least `threshold`; so the rows that
    stay have no such pair among them (as far as LSH finds it), and finding again drops none. Clusters join all
    verified pairs, also those of rows that go.
    """
    count = len(texts)
    kept_for, similarity, cluster = np.full(count, -1), np.zeros(count), np.arange(count)
    candidates = pairs = 0
    parts = list(components(*shared_buckets(bands)))
    calls = run(compare, ((texts[rows], ends, keys, threshold) for rows, ends, keys in parts))
    for (rows, _, _), (goes, other, shares, roots, compared, found) in zip(parts, calls, strict=True):
        kept_for[rows[goes]], similarity[rows[goes]] = rows[other], shares
        cluster[rows] = rows[roots]
        candidates, pairs = candidates + compared, pairs + found
    return NearDuplicates(kept_for, similarity, cluster, candidates, pairs)


def shared_buckets(bands: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and the buckets they fall into, each with another row at least: two int32 arrays, bands behind each other."""
    rows, buckets = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int32)]
    before = 0
    for keys in bands:
        order = np.argsort(keys, kind="stable")
        new = np.ones(len(keys), dtype=bool)
        new[1:] = keys[order[1:]] != keys[order[:-1]]
        number = np.cumsum(new) - 1
        several = np.bincount(number, minlength=1)[number] > 1
        _, number = np.unique(number[several], return_inverse=True)
        rows.append(order[several].astype(np.int32))
        buckets.append((number + before).astype(np.int32))
        before += int(number.max(initial=-1)) + 1
    return np.concatenate(rows), np.concatenate(buckets)


def components(rows: np.ndarray, buckets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows that no bucket links to the others, some TOGETHER of them at a time, so that each part is found alone.

    Yields the rows in their order, (K,); where the buckets of each end, (K,); and the buckets.
    """
    if not len(rows):
        return
    names, rows = np.unique(rows, return_inverse=True)  # numbered from 0
    label = np.arange(len(names))
    while True:
        least = np.full(int(buckets.max()) + 1, len(names))
        np.minimum.at(least, buckets, label[rows])
        nearer = label.copy()
        np.minimum.at(nearer, rows, least[buckets])
        nearer = nearer[nearer]
        if np.array_equal(nearer, label):
            break
        label = nearer
    order = np.lexsort((buckets, rows, label[rows]))
    rows, buckets = rows[order], buckets[order]
    first = np.flatnonzero(np.diff(rows, prepend=-1))  # of each row, whose components are behind each other
    ends = np.append(first[1:], len(rows))
    begins = np.flatnonzero(np.diff(label[rows[first]], prepend=-1))
    start = 0
    for end in (*begins[1:].tolist(), len(first)):
        if end - start >= TOGETHER or end == len(first):
            # A part is compared in the order of the rows, as if its components were one.
            sequence = np.argsort(rows[first[start:end]]) + start
            spans = [np.arange(first[at], ends[at]) for at in sequence.tolist()]
            yield (
                names[rows[first[sequence]]],
                np.cumsum([len(span) for span in spans]),
                buckets[np.concatenate(spans)],
            )
            start = end


def compare(
    texts: Sequence[str], ends: np.ndarray, buckets: np.ndarray, threshold: float
) -> tuple[list[int], list[int], list[float], list[int], int, int]:
    """The near duplicates of one part, as `find` says.

    Returns the rows that go, the row that stays for each, their Jaccard similarity; the first row of each row's
    cluster; and the numbers of compared pairs and of those at or above `threshold`.
    """
    members = lru_cache(maxsize=8192)(lambda row: shingles(texts[row]))
    parent = list(range(len(ends)))
    kept_for: dict[int, tuple[int, float]] = {}
    candidates = pairs = 0
    staying: dict[int, list[int]] = {}
    gone: dict[int, list[int]] = {}
    start = 0
    for row, end in enumerate(ends.tolist()):
        keys = buckets[start:end].tolist()
        start = end
        others = set(chain.from_iterable(part.get(key, ()) for key in keys for part in (staying, gone)))
        candidates += len(others)
        for other in sorted(others):
            left, right = members(other), members(row)
            less, more = sorted((len(left), len(right)))
            if more and less / more < threshold:  # the Jaccard similarity is at most this
                continue
            similarity = jaccard(left, right)
            if similarity < threshold:
                continue
            pairs += 1
            _join(parent, other, row)
            if other not in kept_for and similarity > kept_for.get(row, (0, 0.0))[1]:
                kept_for[row] = (other, similarity)
        for key in keys:
            if row not in kept_for:
                staying.setdefault(key, []).append(row)
            elif len(linked := gone.setdefault(key, [])) < LINKS:
                linked.append(row)
    roots = [_root(parent, row) for row in range(len(ends))]
    stays = [other for other, _ in kept_for.values()]
    return list(kept_for), stays, [share for _, share in kept_for.values()], roots, candidates, pairs


def _root(parent: list[int], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def _join(parent: list[int], left: int, right: int) -> None:
    roots = sorted((_root(parent, left), _root(parent, right)))
    parent[roots[1]] = roots[0]
