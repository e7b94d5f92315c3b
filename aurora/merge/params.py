"""`merge` of params.yaml: the adapter into the base, and what that changes."""

from typing import Annotated, Literal

from pydantic import Field

from aurora.core.params import Count, Section

GgufType = Literal["F16", "Q8_0", "Q4_K_M"]


class Gguf(Section):
    """The merged model as a GGUF file under llama.cpp, which needs the extra `gguf` and llama.cpp's converter."""

    type: GgufType
    """Form of the weights."""
    replies: Count
    """Held-out prompts, the first of the file, that are answered greedily; as many positions are compared as above."""
    max_new_tokens: Count
    """Tokens of a reply at most."""


class Drift(Section):
    """Logits of the merged model beside those of the adapter on the base that it was trained on."""

    rows: Count
    """Held-out rows, the first of the file."""
    positions: Count
    """Positions of each row, the first of its answers; float32 logits of all of them are held in memory, twice."""
    merged_bits: Annotated[tuple[Literal[16, 4], ...], Field(min_length=1)]
    """Forms of the merged model to compare: 16 is bfloat16, a Mixtral in the memory of one layer and others whole;
    4 is NF4."""
    gguf: Gguf | None = None
    """The GGUF file beside the adapter on its base and beside the merged model; null skips it."""


class Merge(Section):
    """The adapter added to the base, and what that changes."""

    threads: Count
    """CPU threads of torch."""
    drift: Drift | None
    """null skips the measurement: where the models do not fit, merging itself needs the memory of one tensor."""
