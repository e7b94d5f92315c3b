"""Messages of a chat as the token ids that the model was trained to answer."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aurora.core.errors import DataError
from aurora.core.messages import PromptName
from aurora.prompt.chat_template import ChatTemplate
from aurora.prompt.mistral import prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = Sequence[dict[str, str]]  # role and content
MARK = re.compile(r"contentmark(\d+)end")  # replaces a content while the template is rendered


def check_chat(messages: Messages) -> None:
    """Raises DataError unless user and assistant alternate, behind a system message or none, and the user is last."""
    turns = list(enumerate(messages))
    if turns and messages[0]["role"] == "system":
        turns = turns[1:]
    if not turns:
        raise DataError("messages: no user message; give one")
    for place, (index, message) in enumerate(turns):
        expected = ("user", "assistant")[place % 2]
        if message["role"] != expected:
            raise DataError(
                f"messages[{index}]: role is {message['role']!r}, expected {expected!r}; user and assistant alternate"
            )
    for index, message in turns:
        if not message["content"]:
            raise DataError(f"messages[{index}]: the {message['role']} message is empty; give some text")
        try:
            message["content"].encode()
        except UnicodeEncodeError:
            raise DataError(
                f"messages[{index}]: half a character (a lone surrogate); send it whole"
            ) from None
    if turns[-1][1]["role"] != "user":
        raise DataError(f"messages[{turns[-1][0]}]: the last message is the assistant's; end with the user's")


def message_encoder(
    tokenizer: "PreTrainedTokenizerFast", form: PromptName
) -> Callable[[Messages], list[int]]:
    """Gives the ids of a chat, up to where the answer begins, in the prompt of `form`.

    Content never becomes a special token. The encoder raises DataError for messages that the prompt cannot hold.
    """
    if form == "chat_template":
        return _TemplateEncoder(tokenizer)

    def encode(messages: Messages) -> list[int]:
        check_chat(messages)
        if messages[0]["role"] == "system":
            raise DataError(
                f"messages[0]: the prompt of this model (format.prompt: {form}) has no system message;"
                " put the instruction in front of the first user message"
            )
        ids: list[int] = []
        for index, message in enumerate(messages):
            user = message["role"] == "user"
            start = [tokenizer.bos_token_id] if user and (not index or form == "bos_every_turn") else []
            text = prompt_text(message["content"]) if user else message["content"]
            ids += [*start, *plain.encode(text, add_special_tokens=False).ids]
            ids += [] if user else [tokenizer.eos_token_id]
        return ids

    plain = _plain(tokenizer)
    return encode


def _plain(tokenizer: "PreTrainedTokenizerFast"):
    """The tokeniser with every text as content: `</s>` in it is four characters and no end."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    return plain


class _TemplateEncoder:
    """A chat template around contents that are encoded with special tokens switched off."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, tokenizer.name_or_path)

    def __call__(self, messages: Messages) -> list[int]:
        check_chat(messages)
        text, template, ids, at = self._render(messages), self.template, [], 0
        assert template.whole is not None
        for found in template.mark.finditer(text):
            ids += self._content(text[at : found.start()], messages)
            ids.append(template.whole.token_to_id(found[0]))
            at = found.end()
        return ids + self._content(text[at:], messages)

    def _render(self, messages: Messages) -> str:
        """The chat with a mark in the place of each content."""
        from jinja2 import TemplateError

        marked = [
            {"role": message["role"], "content": _mark(index)} for index, message in enumerate(messages)
        ]
        try:
            text = self.tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise DataError(f"messages: the chat template of this model refuses them ({reason})") from None
        for index, message in enumerate(messages):
            if text.count(_mark(index)) != 1:
                raise DataError(
                    f"messages[{index}]: the chat template of this model has no place for a {message['role']} message;"
                    " leave it out"
                )
        return text

    def _content(self, text: str, messages: Messages) -> list[int]:
        filled = MARK.sub(lambda found: messages[int(found[1])]["content"], text)
        return self.template.plain.encode(filled, add_special_tokens=False).ids if filled else []


def _mark(index: int) -> str:
    return f"contentmark{index}end"
