"""Normalised characters of a text and 64-bit hashes of their n-grams, in numpy."""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

BORDER = 1  # no character that counts has this number
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd; wrap-around multiplication keeps all 64 bits in play


@cache
def _table() -> np.ndarray:
    """uint32 (65536,): the normal form of each character of the basic plane; 0 for what does not count.

    NFKC and lower case where that is one character; punctuation, blanks and marks do not count.
    """
    table = np.zeros(0x10000, dtype=np.uint32)
    for code in range(0x10000):
        character = chr(code)
        normal = unicodedata.normalize("NFKC", character).lower()
        if len(normal) != 1:
            normal = character
        if normal.isalnum():
            table[code] = ord(normal)
    return table


def characters(text: str) -> np.ndarray:
    """uint32 (n,): the characters that count, full width as half width, capitals as small letters."""
    kept = _normal(text)
    return kept[kept != 0]


def _normal(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if text.isascii() or not len(codes) or codes.max() < 0x10000:
        return _table()[codes]
    # Rare Chinese characters and emoji are outside the basic plane; they stay as they are.
    return np.where(codes < 0x10000, _table()[np.minimum(codes, 0xFFFF)], codes)


def joined(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint32 (n,) characters of all texts, a BORDER behind each, and int64 (len(texts),) where each begins.

    One array for many texts, since numpy's calls cost more than its work on a short one.
    """
    normal = _normal("".join(text + "\n" for text in texts))
    ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)
    if len(texts):
        normal[ends - 1] = BORDER
    counts = normal != 0
    before = np.cumsum(counts)
    starts = np.concatenate([[0], before[ends[:-1] - 1]]) if len(texts) else np.empty(0, dtype=np.int64)
    return normal[counts], starts.astype(np.int64)


def ngrams(codes: np.ndarray, n: int) -> np.ndarray:
    """uint64 (max(1, len - n + 1),): a hash of every n-gram; a shorter, non-empty text is one n-gram.

    By doubling: the hash of 2m characters is hash(first m) * factor + hash(last m), so log2(n) passes do.
    """
    if not len(codes):
        return np.empty(0, dtype=np.uint64)
    n = min(n, len(codes))
    base = codes.astype(np.uint64) * FACTOR
    base ^= base >> np.uint64(29)
    power = base
    width = 1
    result, taken = power[:0], 0
    with np.errstate(over="ignore"):
        while True:
            if n & width:
                if not taken:
                    result = power[: len(codes) - n + 1].copy()
                else:
                    result = mixed(result, power[taken : taken + len(codes) - n + 1])
                taken += width
            if taken == n:
                return result
            power = mixed(power[:-width], power[width:])
            width *= 2


def windows(flat: np.ndarray, starts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """N-grams of `joined` texts that cross no border, one text behind the other, and int64 (texts,) their number."""
    lengths = np.diff(np.append(starts, len(flat))) - 1  # without the border
    counts = np.maximum(lengths - n + 1, 0)
    if len(flat) < n:
        return np.empty(0, dtype=np.uint64), counts
    grams = ngrams(flat, n)
    steps = np.zeros(len(grams) + 1, dtype=np.int64)
    some = counts > 0
    np.add.at(steps, starts[some], 1)
    np.add.at(steps, starts[some] + counts[some], -1)
    return grams[np.cumsum(steps[:-1]) > 0], counts


def mixed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """uint64 (n,): a hash of each pair of hashes."""
    value = left * FACTOR + right
    value ^= value >> np.uint64(32)
    return value
