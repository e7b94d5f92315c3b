"""The forms of a prompt, each with all that the format stage asks of it: Mistral's, and the base's own chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy

from aurora.core.errors import ModelError
from aurora.core.messages import PromptName
from aurora.format.byte_pieces import ByteCost, BytePieces
from aurora.format.rounds import longest_end, truncate_prompt
from aurora.format.row_statistics import ChineseCost
from aurora.prompt.chat_template import ChatTemplate
from aurora.prompt.mistral import check_row, encode_texts, join_rows, turn_texts
from aurora.prompt.tokenizer import EOS, check_model, check_template, sentencepiece_processor

if TYPE_CHECKING:
    import pyarrow
    from sentencepiece import SentencePieceProcessor

Encoded = list[numpy.ndarray]  # token ids (int32) of each turn


class Form(Protocol):
    """What the format stage asks of a form."""

    checks_every_row: bool
    """Whether `check` wants every row, or a sample."""
    fixed_tokens: tuple[int, int]
    """Tokens of a row beside its turns, and beside them of each of its rounds."""
    chinese: ChineseCost | ByteCost

    def encode(self, contents: "pyarrow.StringArray") -> tuple[Encoded, Encoded]:
        """Ids of alternating turns, the user's first, and ids of the same turns where they begin a row."""

    def shorten(self, content: str, room: int) -> tuple[str, numpy.ndarray] | None:
        """The longest end of a question that has at most `room` tokens, and its ids at the beginning of a row."""

    def join(self, encoded: Encoded, opening: Encoded, rounds: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
        """Rows laid end to end, as `join_rows` has them."""

    def refuse_forged(self, ids: numpy.ndarray, rows: int, rounds: int, place: str) -> None:
        """Raises ModelError if text became a control token."""

    def check(
        self, ids: numpy.ndarray, labels: numpy.ndarray, contents: Sequence[str], decode: bool, place: str
    ) -> None:
        """Raises ModelError where a row is not that of its contents."""


@dataclass(frozen=True)
class MistralForm:
    """Mistral's v1 prompt on its own sentencepiece model, with <s> in front of a row or of every round."""

    processor: "SentencePieceProcessor"
    prompt: PromptName
    checks_every_row = False

    @property
    def fixed_tokens(self) -> tuple[int, int]:
        return (1, 1) if self.prompt == "mistral" else (0, 2)

    @cached_property
    def chinese(self) -> ChineseCost:
        return ChineseCost(self.processor)

    def encode(self, contents: "pyarrow.StringArray") -> tuple[Encoded, Encoded]:
        encoded = encode_texts(self.processor, turn_texts(contents))
        return encoded, encoded

    def shorten(self, content: str, room: int) -> tuple[str, numpy.ndarray] | None:
        return truncate_prompt(self.processor, content, room)

    def join(self, encoded: Encoded, opening: Encoded, rounds: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
        return join_rows(encoded, rounds, self.prompt)

    def refuse_forged(self, ids: numpy.ndarray, rows: int, rounds: int, place: str) -> None:
        per_row, per_round = self.fixed_tokens
        _refuse_forged(numpy.count_nonzero(ids <= EOS), per_row * rows + per_round * rounds, place)

    def check(
        self, ids: numpy.ndarray, labels: numpy.ndarray, contents: Sequence[str], decode: bool, place: str
    ) -> None:
        if decode:
            check_row(self.processor, ids, labels, contents[1::2], place)


@dataclass(frozen=True)
class TemplateForm:
    """The base's own chat template on its own tokeniser."""

    template: ChatTemplate
    checks_every_row = True

    @cached_property
    def fixed_tokens(self) -> tuple[int, int]:
        first, after, last = (len(getattr(self.template, name)) for name in ("first", "after", "last"))
        return first + last - after, after + 1

    @cached_property
    def chinese(self) -> ByteCost:
        return ByteCost(BytePieces(self.template.whole))

    def encode(self, contents: "pyarrow.StringArray") -> tuple[Encoded, Encoded]:
        texts = contents.to_pylist()
        encoded = self.template.turns(texts)
        if self.template.opening_text == self.template.following_text:
            return encoded, encoded
        opening = list(encoded)
        opening[::2] = self.template.questions(texts[::2], opening=True)
        return encoded, opening

    def shorten(self, content: str, room: int) -> tuple[str, numpy.ndarray] | None:
        return longest_end(content, room, lambda text: self.template.questions([text], opening=True)[0])

    def join(self, encoded: Encoded, opening: Encoded, rounds: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
        return self.template.join(encoded, opening, rounds.tolist())

    def refuse_forged(self, ids: numpy.ndarray, rows: int, rounds: int, place: str) -> None:
        control, template = self.template.control, self.template
        first, between, after, last = (
            numpy.count_nonzero(control[part])
            for part in (template.first, template.between, template.after, template.last)
        )
        placed = rows * (first + last) + rounds * (between + 1) + (rounds - rows) * after
        _refuse_forged(numpy.count_nonzero(control[ids]), placed, place)

    def check(
        self, ids: numpy.ndarray, labels: numpy.ndarray, contents: Sequence[str], decode: bool, place: str
    ) -> None:
        self.template.check(ids, labels, contents, decode, place)


def open_form(tokenizer: Path, prompt: PromptName) -> Form:
    """The form of a base: `tokenizer` is its folder, or its tokenizer.model for a form of Mistral's.

    Raises ModelError if the base's tokeniser or template is not of this form.
    """
    if prompt == "chat_template":
        return TemplateForm(ChatTemplate.of(tokenizer if tokenizer.is_dir() else tokenizer.parent))
    file = tokenizer / "tokenizer.model" if tokenizer.is_dir() else tokenizer
    if not file.is_file() and file.with_name("tokenizer.json").is_file():
        raise ModelError(
            f"{file}: not found, and format.prompt: {prompt} is of Mistral's sentencepiece model; set it to chat_template"
        )
    processor = sentencepiece_processor(file)
    check_model(file.parent)
    check_template(file.with_name("tokenizer_config.json"))
    return MistralForm(processor, prompt)


def _refuse_forged(found: int, placed: int, place: str) -> None:
    if found != placed:
        raise ModelError(f"{place}: {found} control tokens where {placed} were placed; the text forged some")
