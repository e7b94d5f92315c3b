"""Whole rounds laid into rows of limited length, and prompts made shorter where a round exceeds it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy


class Cut(NamedTuple):
    """Which rounds go where, by their indices."""

    rows: list[list[int]]
    too_long: list[int]  # beyond the length on their own
    rest: list[int]  # beyond the first row, when rows are not continued


def cut_rounds(lengths: Sequence[int], capacity: int, continued: bool, opening: Sequence[int] | None = None) -> Cut:
    """Lays rounds of `lengths` tokens, in order and whole, into rows of at most `capacity` tokens.

    `opening` are their lengths at the beginning of a row, where these differ. A round that is too long ends the row:
    what follows it would lack its context.
    """
    opening = lengths if opening is None else opening
    rows: list[list[int]] = [[]]
    too_long = []
    used = 0
    for index, length in enumerate(lengths):
        if rows[-1] and used + length > capacity:
            rows.append([])
            used = 0
        needed = length if rows[-1] else opening[index]
        if needed <= capacity:
            rows[-1].append(index)
            used += needed
        else:
            too_long.append(index)
    rows = [row for row in rows if row]
    rest = [] if continued else [index for row in rows[1:] for index in row]
    return Cut(rows if continued else rows[:1], too_long, rest)


def longest_end(content: str, room: int, encode: Callable[[str], numpy.ndarray]) -> tuple[str, numpy.ndarray] | None:
    """The longest end of a prompt, cut between characters, of which `encode` makes at most `room` tokens.

    Returns the text and its ids, or None if there is no room for one character.
    """
    low, high = 0, len(content) + 1  # the number of characters kept is at least low and below high
    found = None
    while low + 1 < high:
        middle = (low + high) // 2
        text = content[-middle:]
        ids = encode(text)
        if len(ids) <= room:
            low, found = middle, (text, ids)
        else:
            high = middle
    return found
