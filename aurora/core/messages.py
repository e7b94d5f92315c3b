"""The record that travels from clean to format, a conversation of messages, and the prompts it can become."""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

PromptName = Literal["mistral", "bos_every_turn", "chat_template"]
"""mistral: as Mistral's own library writes it; bos_every_turn: as the paper's framework did;
chat_template: as the base's own Hugging Face template does."""
Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, in the field names of the `messages` format."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Whole rounds, user first and assistant last, roles alternating."""

    source: str  # key in `sources` of params.yaml
    position: int  # 0-based position of the row in its source file
    messages: tuple[Message, ...]

    @property
    def id(self) -> str:
        """Content id: equal messages have an equal id, whatever their source and position."""
        return content_id(self.messages)

    @property
    def rounds(self) -> int:
        """Number of user turns that are answered."""
        return len(self.messages) // 2


def content_id(messages: tuple[Message, ...]) -> str:
    """First 128 bits, in hex, of the SHA-256 of the messages' canonical JSON."""
    pairs = [[message.role, message.content] for message in messages]
    text = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
