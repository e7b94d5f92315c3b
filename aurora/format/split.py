"""Which conversations are kept from training: the hash of a content id decides, and nothing else."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy


class Split(NamedTuple):
    """Two (C,) bool arrays over conversations; those of neither are trained."""

    held_out: numpy.ndarray
    near_held_out: numpy.ndarray  # not held out, but in the cluster of one that is: on neither side


def is_held_out(key: str, share: float) -> bool:
    """Whether the conversation of this id is kept from training; depends on the id and the share alone."""
    digest = hashlib.sha256(f"held_out {key}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def split(ids: Sequence[str], clusters: Sequence[str], share: float, fit: Sequence[bool] | None = None) -> Split:
    """Sides of conversations by their ids; `clusters` are the keys of their clusters of near duplicates.

    Only conversations that are `fit` are held out: those whose first answer is to be trained, and so to be compared with.

    A new source may join clusters, and so keep a conversation from training, but moves none to the other side.
    """
    held_out = [is_held_out(key, share) and (fit is None or fit[row]) for row, key in enumerate(ids)]
    near = {cluster for cluster, chosen in zip(clusters, held_out, strict=True) if chosen}
    left_out = [cluster in near and not chosen for cluster, chosen in zip(clusters, held_out, strict=True)]
    return Split(numpy.array(held_out, dtype=bool), numpy.array(left_out, dtype=bool))
