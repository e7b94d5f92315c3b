"""Near duplicates: MinHash by rensa, LSH bands for candidates, exact Jaccard to decide."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from aurora.clean.shingles import characters, joined, ngrams, windows

NGRAM = 5  # characters
BANDS, ROWS = 16, 8  # finds 0.95 of the pairs at Jaccard 0.8, all but one in a million at 0.95
SEED = 42
LINKS = 8  # rows that went and still link later ones to their cluster, a bucket; a template has thousands
CHUNK = 4096  # conversations hashed at a time: bounds memory


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """For each row: the row that it duplicates, and its cluster."""

    kept_for: dict[int, tuple[int, float]]  # dropped row -> (row that stays, Jaccard)
    cluster: list[int]  # row -> first row of its cluster; itself where it is alone
    candidates: int  # pairs that share a band and were compared
    pairs: int  # of them, those at or above the threshold


def shingles(text: str) -> np.ndarray:
    """Sorted, distinct hashes of the text's character 5-grams."""
    return np.unique(ngrams(characters(text), NGRAM))


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard similarity of two sorted, distinct arrays; 0 for two empty ones, which say nothing."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - common
    return common / union if union else 0.0


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


def buckets(signatures: np.ndarray) -> np.ndarray:
    """int64 (rows, BANDS): number of the bucket a row falls into in each band; -1 where it is alone there."""
    result = np.full((len(signatures), BANDS), -1, dtype=np.int64)
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * ROWS : (band + 1) * ROWS])
        keys = part.view([("", part.dtype)] * ROWS).ravel()
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        result[:, band] = np.where(counts[inverse] > 1, inverse, -1)
    return result


def find(texts: Sequence[str], threshold: float) -> NearDuplicates:
    """Near duplicates among `texts`, the first of which stay.

    A row goes if its Jaccard similarity with an earlier row that stays is at least `threshold`; so the rows that
    stay have no such pair among them (as far as LSH finds it), and finding again drops none. Clusters join all
    verified pairs, also those of rows that go.
    """
    parent = list(range(len(texts)))
    kept_for: dict[int, tuple[int, float]] = {}
    candidates = pairs = 0
    if not texts:
        return NearDuplicates(kept_for, parent, 0, 0)
    members = lru_cache(maxsize=2048)(lambda row: shingles(texts[row]))
    staying: dict[tuple[int, int], list[int]] = {}
    gone: dict[tuple[int, int], list[int]] = {}
    table = buckets(signatures(texts))
    for row in np.flatnonzero((table >= 0).any(axis=1)).tolist():
        keys = [(band, bucket) for band, bucket in enumerate(table[row].tolist()) if bucket >= 0]
        others = {other for key in keys for part in (staying, gone) for other in part.get(key, ())}
        for other in sorted(others):
            candidates += 1
            similarity = jaccard(members(other), members(row))
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
    return NearDuplicates(kept_for, [_root(parent, row) for row in range(len(texts))], candidates, pairs)


def _root(parent: list[int], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def _join(parent: list[int], left: int, right: int) -> None:
    roots = sorted((_root(parent, left), _root(parent, right)))
    parent[roots[1]] = roots[0]
