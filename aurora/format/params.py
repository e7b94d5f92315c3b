"""`format` of params.yaml: conversations to token rows."""

from typing import Annotated, Literal

from pydantic import Field

from aurora.core.messages import PromptName
from aurora.core.params import Section


class Format(Section):
    """Conversations to token rows."""

    prompt: PromptName
    """mistral: as Mistral's own library writes it; bos_every_turn: as the paper's framework did;
    chat_template: as the base's own Hugging Face template does."""
    max_length: Annotated[int, Field(ge=16)]
    """Tokens in one row."""
    long_conversation: Literal["continue", "drop_rest"]
    """Rounds beyond max_length become a further row, or are dropped and counted."""
    long_round: Literal["drop", "truncate_prompt"]
    """A single round beyond max_length is dropped, or its prompt loses its beginning; both are counted."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of conversations kept from training, chosen by hash of the content id. Of a cluster of near duplicates
    (clean.near_duplicates) with a held-out member, the others are left out of training and counted."""
