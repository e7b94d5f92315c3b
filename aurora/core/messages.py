"""The record that travels from clean to format, a conversation of rounds, and the prompts it can become."""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, NamedTuple

PromptName = Literal["mistral", "bos_every_turn", "chat_template"]
"""mistral: as Mistral's own library writes it; bos_every_turn: as the paper's framework did;
chat_template: as the base's own Hugging Face template does."""
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, in the field names of the `messages` format."""

    role: Role
    content: str
    train: bool = True
    """Whether an assistant's turn is to be trained; else it is context."""
    tool_calls: str = ""
    """JSON list of the calls of an assistant's turn, as the source gives them; empty without."""


class Round(NamedTuple):
    """A user's turn and the answer to it."""

    prompt: str
    answer: str
    train: bool = True
    """Whether the answer is to be trained; else it is context."""
    steps: str = ""
    """JSON list of the messages between prompt and answer: tool calls and their results; empty without. Where it ends
    on a call, that call is the answer, and `answer` has it as text."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Whole rounds, and what precedes them."""

    source: str  # key in `sources` of params.yaml
    position: int  # 0-based position of the row in its source
    rounds: tuple[Round, ...]
    system: str = ""
    tools: str = ""  # JSON list of the functions that may be called; empty without

    @property
    def id(self) -> str:
        """Content id: equal contents have an equal id, whatever their source and position."""
        return content_id(self.rounds, self.system, self.tools)


def content_id(rounds: tuple[Round, ...], system: str = "", tools: str = "") -> str:
    """First 128 bits, in hex, of the SHA-256 of the conversation as canonical JSON."""
    turns: list[list] = [[name, text] for name, text in (("tools", tools), ("system", system)) if text]
    for prompt, answer, train, steps in rounds:
        turns.append(["user", prompt])
        if steps:
            turns.append(["steps", steps])
        turns.append(["assistant", answer] if train else ["assistant", answer, False])
    text = json.dumps(turns, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
