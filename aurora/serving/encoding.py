"""Messages of a chat as the token ids that the model was trained to answer."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aurora.core.errors import DataError
from aurora.core.messages import PromptName
from aurora.eval.chat_encoder import ChatEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = Sequence[dict[str, str]]  # role and content


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
    for index, message in enumerate(messages):
        if not message["content"] and message["role"] != "system":
            raise DataError(f"messages[{index}]: the {message['role']} message is empty; give some text")
        try:
            message["content"].encode()
        except UnicodeEncodeError:
            raise DataError(f"messages[{index}]: half a character (a lone surrogate); send it whole") from None
    if turns[-1][1]["role"] != "user":
        raise DataError(f"messages[{turns[-1][0]}]: the last message is the assistant's; end with the user's")


def message_encoder(tokenizer: "PreTrainedTokenizerFast", form: PromptName) -> Callable[[Messages], list[int]]:
    """Gives the ids of a chat, up to where the answer begins, in the prompt of `form`.

    The encoder raises DataError as `check_chat` does.
    """
    encoder = ChatEncoder(tokenizer, form)

    def encode(messages: Messages) -> list[int]:
        check_chat(messages)
        system, *others = messages if messages[0]["role"] == "system" else ({"content": ""}, *messages)
        return encoder.encode([message["content"] for message in others], system["content"])

    return encode
