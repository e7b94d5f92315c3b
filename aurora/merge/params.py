"""`merge` of params.yaml: the adapter into the base, and what that changes."""

from typing import Annotated, Literal

from pydantic import Field

from aurora.core.params import Count, Section


class Drift(Section):
    """Logits of the merged model beside those of the adapter on the base that it was trained on."""

    rows: Count
    """Held-out rows, the first of the file."""
    positions: Count
    """Positions of each row, the first of its answers; float32 logits of all of them are held in memory, twice."""
    merged_bits: Annotated[tuple[Literal[16, 4], ...], Field(min_length=1)]
    """Forms of the merged model to compare: 16 is bfloat16, a Mixtral in the memory of one layer and others whole;
    4 is NF4."""


class Merge(Section):
    """The adapter added to the base, and what that changes."""

    threads: Count
    """CPU threads of torch."""
    drift: Drift | None
    """null skips the measurement: where the models do not fit, merging itself needs the memory of one tensor."""
