"""A chat as the token ids that the model was trained to answer, the one place where a generation prompt is made."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from aurora.core.messages import PromptName
from aurora.prompt.chat_template import ChatTemplate
from aurora.prompt.mistral import prompt_text, with_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROUNDS = 1024  # whose ids are kept, since shots and histories come again


class ChatEncoder:
    """Turns as ids in the prompt of the training. Content never becomes a special token: `</s>` in it is four characters."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", form: PromptName) -> None:
        from tokenizers import Tokenizer

        self.tokenizer, self.form = tokenizer, form
        self.template = ChatTemplate(tokenizer, tokenizer.name_or_path) if form == "chat_template" else None
        self.plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.plain.encode_special_tokens = True
        self._round = lru_cache(ROUNDS)(self._encode_round)

    def encode(self, turns: Sequence[str], system: str = "") -> list[int]:
        """Ids of alternating turns, the user's first and last, up to where the answer begins."""
        ids: list[int] = []
        for index in range(0, len(turns) - 1, 2):
            ids += self._round(turns[index], turns[index + 1], index == 0, "" if index else system)
        return ids + self.question(turns[-1], len(turns) == 1, system if len(turns) == 1 else "")

    def question(self, text: str, first: bool, system: str = "") -> list[int]:
        """Ids of a question, as the first of a conversation or behind the token that ends an answer.

        As in training, a system prompt goes in front of the first question where the prompt has no turn for it.
        """
        if self.template:
            return self.template.prompt(text, first, system)
        start = [self.tokenizer.bos_token_id] if first or self.form == "bos_every_turn" else []
        return [*start, *self._ids(prompt_text(with_system(system, text)))]

    def _encode_round(self, question: str, answer: str, first: bool, system: str) -> list[int]:
        if self.template:
            said, end = self.template.answers([answer])[0].tolist(), self.template.end
        else:
            said, end = self._ids(answer), self.tokenizer.eos_token_id
        return [*self.question(question, first, system), *said, cast(int, end)]

    def _ids(self, text: str) -> list[int]:
        return self.plain.encode(text, add_special_tokens=False).ids
