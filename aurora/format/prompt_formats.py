"""The prompt formats: Mistral's own, and the base's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy

from aurora.core.errors import ModelError
from aurora.core.messages import PromptName
from aurora.format.byte_pieces import ByteCost, BytePieces
from aurora.format.rounds import longest_end
from aurora.format.row_statistics import ChineseCost
from aurora.prompt.chat_template import ChatTemplate, ToolRounds
from aurora.prompt.mistral import check_row, encode_texts, join_rows, prompt_text, turn_texts, with_system
from aurora.prompt.tokenizer import EOS, check_model, check_template, sentencepiece_processor

if TYPE_CHECKING:
    import pyarrow
    from sentencepiece import SentencePieceProcessor

Encoded = list[numpy.ndarray]  # token ids (int32) of each turn


class PromptFormat(Protocol):
    """What a prompt format does for the format stage."""

    @property
    def checks_every_row(self) -> bool:
        """Whether `check` needs every row, or a sample."""

    @property
    def fixed_tokens(self) -> tuple[int, int]:
        """Tokens of a row beside its turns, and beside them of each of its rounds."""

    @property
    def opening_control(self) -> int:
        """Control tokens of a row's first prompt, without a system prompt."""

    @property
    def chinese(self) -> ChineseCost | ByteCost:
        """What Chinese costs in tokens."""

    def encode(self, contents: "pyarrow.StringArray") -> tuple[Encoded, Encoded]:
        """Ids of alternating turns, the user's first, and ids of the same turns where they begin a row."""

    def opening(self, content: str, system: str) -> numpy.ndarray:
        """Ids of a prompt that begins a row with a system prompt."""

    def tool_rounds(self, rounds: Sequence[tuple], system: str, tools: str) -> ToolRounds | None:
        """Ids of a conversation with tool calls, as `ChatTemplate.tool_rounds` has them; None if it has no exact ones."""

    def shorten(self, content: str, room: int, system: str) -> tuple[str, numpy.ndarray] | None:
        """The longest end of a prompt that has at most `room` tokens, and its ids at the beginning of a row."""

    def join(self, encoded: Encoded, rounds: numpy.ndarray, trained: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
        """Rows laid end to end, as `join_rows` has them; `encoded` has a row's first prompt as it begins a row."""

    def control_tokens(self, rows: int, rounds: int) -> int:
        """Control tokens that so many rows with so many rounds hold, where none has a system prompt or tool calls."""

    def count_control(self, ids: numpy.ndarray) -> int:
        """Control tokens among these ids."""

    def check(
        self, ids: numpy.ndarray, labels: numpy.ndarray, contents: Sequence[str], trained: Sequence[bool],
        system: str, decode: bool, place: str,
    ) -> None:  # fmt: skip
        """Raises ModelError where a row is not that of its contents."""


@dataclass(frozen=True)
class MistralFormat:
    """Mistral's v1 prompt on its own sentencepiece model, with <s> in front of a row or of every round."""

    processor: "SentencePieceProcessor"
    prompt: PromptName
    checks_every_row = False
    opening_control = 0

    @property
    def fixed_tokens(self) -> tuple[int, int]:
        return (1, 1) if self.prompt == "mistral" else (0, 2)

    @cached_property
    def chinese(self) -> ChineseCost:
        return ChineseCost(self.processor)

    def encode(self, contents: "pyarrow.StringArray") -> tuple[Encoded, Encoded]:
        encoded = encode_texts(self.processor, turn_texts(contents))
        return encoded, encoded

    def opening(self, content: str, system: str) -> numpy.ndarray:
        return encode_texts(self.processor, [prompt_text(with_system(system, content))])[0]

    def tool_rounds(self, rounds: Sequence[tuple], system: str, tools: str) -> None:
        return None  # version 1 of the template has no tools

    def shorten(self, content: str, room: int, system: str) -> tuple[str, numpy.ndarray] | None:
        return longest_end(content, room, lambda text: self.opening(text, system))

    def join(self, encoded: Encoded, rounds: numpy.ndarray, trained: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
        return join_rows(encoded, rounds, self.prompt, trained)

    def control_tokens(self, rows: int, rounds: int) -> int:
        per_row, per_round = self.fixed_tokens
        return per_row * rows + per_round * rounds

    def count_control(self, ids: numpy.ndarray) -> int:
        return int(numpy.count_nonzero(ids <= EOS))

    def check(
        self, ids: numpy.ndarray, labels: numpy.ndarray, contents: Sequence[str], trained: Sequence[bool],
        system: str, decode: bool, place: str,
    ) -> None:  # fmt: skip
        if decode:
            answers = [answer for answer, learnt in zip(contents[1::2], trained, strict=True) if learnt]
            check_row(self.processor, ids, labels, answers, place)


@dataclass(frozen=True)
class TemplateFormat:
    """The base's own chat template on its own tokeniser."""

    template: ChatTemplate
    checks_every_row = True

    @cached_property
    def fixed_tokens(self) -> tuple[int, int]:
        after, last = len(self.template.after), len(self.template.last)
        return last - after, after + 1

    @cached_property
    def opening_control(self) -> int:
        return self.count_control(self.template.first) + self.count_control(self.template.between)

    @cached_property
    def chinese(self) -> ByteCost:
        return ByteCost(BytePieces(self.template.whole))

    def encode(self, contents: "pyarrow.StringArray") -> tuple[Encoded, Encoded]:
        texts = contents.to_pylist()
        encoded = self.template.turns(texts)
        opening = list(encoded)
        opening[::2] = self.template.openings(texts[::2], encoded[::2])
        return encoded, opening

    def opening(self, content: str, system: str) -> numpy.ndarray:
        return self.template.opening(content, system)

    def tool_rounds(self, rounds: Sequence[tuple], system: str, tools: str) -> ToolRounds | None:
        return self.template.tool_rounds(rounds, system, tools)

    def shorten(self, content: str, room: int, system: str) -> tuple[str, numpy.ndarray] | None:
        return longest_end(content, room, lambda text: self.opening(text, system))

    def join(self, encoded: Encoded, rounds: numpy.ndarray, trained: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
        return self.template.join(encoded, rounds.tolist(), trained)

    def control_tokens(self, rows: int, rounds: int) -> int:
        first, between, after, last = (
            self.count_control(part)
            for part in (self.template.first, self.template.between, self.template.after, self.template.last)
        )
        return rows * (first + last) + rounds * (between + 1) + (rounds - rows) * after

    def count_control(self, ids: numpy.ndarray) -> int:
        return int(numpy.count_nonzero(self.template.control[ids]))

    def check(
        self, ids: numpy.ndarray, labels: numpy.ndarray, contents: Sequence[str], trained: Sequence[bool],
        system: str, decode: bool, place: str,
    ) -> None:  # fmt: skip
        self.template.check(ids, labels, contents, decode, place, system, trained)


def open_prompt_format(tokenizer: Path, prompt: PromptName) -> PromptFormat:
    """The prompt format of a base: `tokenizer` is its folder, or its tokenizer.model for one of Mistral's.

    Raises ModelError if the base's tokeniser or template is of another kind.
    """
    if prompt == "chat_template":
        return TemplateFormat(ChatTemplate.of(tokenizer if tokenizer.is_dir() else tokenizer.parent))
    file = tokenizer / "tokenizer.model" if tokenizer.is_dir() else tokenizer
    if not file.is_file() and file.with_name("tokenizer.json").is_file():
        raise ModelError(
            f"{file}: not found, and format.prompt: {prompt} is of Mistral's sentencepiece model; set it to chat_template"
        )
    processor = sentencepiece_processor(file)
    check_model(file.parent)
    check_template(file.with_name("tokenizer_config.json"))
    return MistralFormat(processor, prompt)
