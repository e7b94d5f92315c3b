"""`clean` of params.yaml: the rules, each a switch or a threshold."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from aurora.core.errors import ParamsError
from aurora.core.params import Section, Share, describe, strict

ALL_SOURCES = ("exact_duplicates", "near_duplicates", "contamination")  # rules that compare rows of all sources


class Clean(Section):
    """Rules of the clean stage, each a switch or a threshold; aurora/clean/filters.py says what each rule does."""

    faulty_round: Literal["cut", "drop"]
    """A fault behind the first round cuts the conversation in front of it (repaired, counted), or drops it."""
    wrong_roles: Literal["trim", "drop"]
    """A conversation that begins with the assistant or ends on the user is trimmed (counted), or dropped."""
    invisible_characters: bool
    """Remove control, zero-width, directional and private-use characters; joiners of emoji stay."""
    html_remnants: bool
    """Remove tags and entities of web pages outside code and conversations about code."""
    mojibake: bool
    """Repair UTF-8 read in another encoding where the repair is certain, else the round is faulty."""
    template_markers: bool
    """Remove markers of prompt templates (`### Response:`, `<|im_end|>`) or read them as the turns that they mark;
    where neither is certain, the round is faulty."""
    placeholder_answers: bool
    """Answers such as `<noinput>` or 无输入 are faulty; the same as Alpaca input counts as no input."""
    truncated_answers: bool
    """Answers cut off mid-text are faulty, unless the next prompt asks to continue. A source whose short answers lack
    end marks does so by habit, and a missing mark is no fault there."""
    truncated_from: Annotated[int, Field(ge=1)]
    """Characters from which an answer without an end mark can count as cut off. A limit of length cuts beyond 300 in
    real sets; people leave the mark out of short answers."""
    other_models: bool
    """Answers that present themselves as another vendor's model are faulty."""
    refusals: bool
    """Answers that refuse, or only ask for text that the prompt does not have, are faulty."""
    leaked_translation_prompts: bool
    """A conversation whose first prompt is an instruction to the translator of the data set is dropped."""
    unreachable_prompts: bool
    """Prompts that need a picture, a recording or the page behind a link are faulty."""
    min_chinese_share: Share
    """Chinese characters among those and foreign words, over the whole conversation; 0 is off. A prompt with a
    Chinese phrase makes the conversation Chinese, whatever its share."""
    min_answer_characters: Annotated[int, Field(ge=1)]
    """Characters that a whole answer must have."""
    max_characters: Annotated[int, Field(ge=1)]
    """Characters of all turns together; a longer conversation is cut behind its last whole round within."""
    exact_duplicates: bool
    """Of conversations with equal messages the first stays: sources in the order of params.yaml, then position."""
    near_duplicates: Annotated[float, Field(gt=0.5, le=1)] | None
    """Jaccard similarity of character 5-grams from which the later conversation is dropped; null is off."""
    contamination: Annotated[float, Field(gt=0.5, le=1)] | None
    """Share of a benchmark question's n-grams (8 Chinese or 32 other characters) from which a row is dropped; null is off."""
    traditional: Literal["keep", "convert", "drop"]
    """Conversations in traditional characters are counted and kept, converted by OpenCC, or dropped."""


def overridden(params: Clean, rules: Mapping[str, object] | None, source: str) -> Clean:
    """The rules of one source: those of all, but for what its own entry says.

    Raises ParamsError for an unknown rule, a wrong value, or a rule that compares rows of all sources.
    """
    if not rules:
        return params
    if shared := [name for name in rules if name in ALL_SOURCES]:
        raise ParamsError(
            f"params.yaml: sources.{source}.clean.{shared[0]}: compares the rows of all sources; set clean.{shared[0]}"
        )
    try:
        return Clean.model_validate_json(strict(params.model_dump() | dict(rules)))
    except ValidationError as error:
        raise ParamsError(f"params.yaml: {describe(error, f'sources.{source}.clean')}") from None
