"""Markers of prompt templates that a data set left in its texts: removed, or read as the turns that they mark."""

import itertools
import re
from typing import NamedTuple

from aurora.core.messages import Message, Role

SUSPECT = re.compile(r"<[|a-z/]|\[/?INST\]|\[\|(?:Human|AI)|###|(?:Human|Assistant|USER|ASSISTANT|User)\s?[:：]")
EDGES = r"<\|im_end\|>|<\|im_start\|>|<\|endoftext\|>|<\|end_of_text\|>|<\|begin_of_text\|>|<\|eot_id\|>|<\|end\|>|<eo[mahpcs]>|</?s>|<bos>|<eos>|<end_of_turn>|<\|endofturn\|>"
END = re.compile(rf"(?:\s*(?:{EDGES}))+\s*$")
START = re.compile(r"^\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)\s*)+")
USER = r"<\|im_start\|>\s*user\b|<\|user\|>|<start_of_turn>user\b|<(?:user|human)>\s*[:：]?|\[\|Human\|\]\s*[:：]?|\[INST\]"
BOT = (
    r"<\|im_start\|>\s*assistant\b|<\|assistant\|>|<start_of_turn>model\b|<(?:bot|assistant|gpt)>\s*[:：]?"
    r"|\[\|AI\|\]\s*[:：]?|\[/INST\]"
)
USER_LINE = r"(?:###\s*)?(?:Human|USER|User)\s?[:：]|###\s*(?:Instruction|Question|指令|问题|用户|Human|User)\s*[:：]?"
BOT_LINE = r"(?:###\s*)?(?:Assistant|ASSISTANT)\s?[:：]|###\s*(?:Response|Answer|回答|回复|输出|Assistant)\s*[:：]?"
MARKER = re.compile(
    rf"(?:{EDGES}|\s)*(?:(?P<user>{USER}|(?:^|(?<=\n))[ \t]*(?:{USER_LINE}))"
    rf"|(?P<assistant>{BOT}|(?:^|(?<=\n))[ \t]*(?:{BOT_LINE})))\s*"
)
INPUT = re.compile(r"\s*\n###\s*(?:Input|输入)\s*[:：]?\s*")
SYSTEM = re.compile(r"<\|im_start\|>\s*system\b\s*|<\|system\|>\s*")
LLAMA_SYSTEM = re.compile(r"<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)
PREAMBLE = re.compile(r"^(?:Below is an? |以下是(?:一[个条]|描述)|下面是(?:一[个条]|描述))[^\n]*$", re.IGNORECASE)
HARD = re.compile(rf"{EDGES}|{USER}|{BOT}|(?:^|\n)###\s*(?:Instruction|Response)\s*[:：]")
# A conversation about templates, or a dialogue that was asked for, speaks of markers and means them.
ABOUT_MARKERS = re.compile(
    r"模板|标记|标签|特殊符号|分词|token|template|prompt|提示词|微调|fine-?tun|html|xml|删除线|代码|编程|markdown",
    re.IGNORECASE,
)
DIALOGUE = re.compile(r"对话|對話|剧本|台词|脚本|聊天|访谈|采访|dialog|conversation|script", re.IGNORECASE)
CODE_SPAN = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)


class Part(NamedTuple):
    """A stretch of a text and whose it is; the first has no role."""

    role: Role | None
    text: str


def without_markers(messages: tuple[Message, ...], repaired: list[str]) -> tuple[Message, ...]:
    """Messages without the markers of a template; where these mark turns, the turns become messages."""
    if not any(is_suspect(message.content) for message in messages):
        return messages
    if any(
        ABOUT_MARKERS.search(message.content)
        for message in messages
        if message.role == "user" and not SUSPECT.search(message.content)
    ):
        return messages
    result: list[Message] = []
    for number, message in enumerate(messages):
        after = messages[number + 1].role if number + 1 < len(messages) else None
        asked = message.role == "assistant" and bool(result) and DIALOGUE.search(result[-1].content)
        for found in [message] if asked else _split(message, after):
            if found is not message and "template_removed" not in repaired:
                repaired.append("template_removed")
            result.append(found)
    return tuple(result)


def is_suspect(text: str) -> bool:
    """Whether a text can hold a marker; most have none of the signs of one."""
    return (
        "<" in text or "[" in text or "###" in text or "Human" in text or "Assistant" in text or "User" in text
        or "USER" in text or "ASSISTANT" in text
    ) and SUSPECT.search(text) is not None  # fmt: skip


def leftover(text: str) -> re.Match[str] | None:
    """A marker in a text outside code, if any."""
    found = HARD.search(text) if is_suspect(text) else None
    return found and HARD.search(CODE_SPAN.sub(lambda code: " " * len(code[0]), text))


def _split(message: Message, after: str | None) -> list[Message]:
    text = message.content
    if message.role == "system" or not SUSPECT.search(text) or CODE_SPAN.search(text):
        return [message]
    text = START.sub("", END.sub("", text))
    parts = _parts(text)
    roles = [part.role for part in parts[1:]]
    if message.role == "user":
        parts = _prompt_parts(parts, after)
    elif roles[:1] == ["assistant"] and not parts[0].text:
        parts = [Part("assistant", parts[1].text), *parts[2:]]
    else:
        parts = [Part("assistant", parts[0].text), *parts[1:]]
    while len(parts) > 1 and not parts[-1].text:
        parts.pop()  # a marker behind which nothing came
    given = [part.role for part in parts]
    alternating = all(left != right for left, right in itertools.pairwise(given))
    if not alternating or (message.role == "user" and given[-1:] != ["user"]):
        parts = [Part(message.role, text)]  # not certain
    if parts == [Part(message.role, message.content)]:
        return [message]
    return [Message(part.role or message.role, part.text, message.train, message.tool_calls) for part in parts]


def _parts(text: str) -> list[Part]:
    parts: list[Part] = []
    start, role = 0, None
    for found in MARKER.finditer(text):
        parts.append(Part(role, END.sub("", text[start : found.start()]).strip()))
        start, role = found.end(), "user" if found["user"] is not None else "assistant"
    return [*parts, Part(role, END.sub("", text[start:]).strip())]


def _prompt_parts(parts: list[Part], after: str | None) -> list[Part]:
    """The turns of a user's message: a template's preamble goes, and the empty answer that waits at its end."""
    if len(parts) > 1 and parts[-1].role == "assistant" and not parts[-1].text and after == "assistant":
        parts = parts[:-1]
    first, *others = parts
    if others and (found := LLAMA_SYSTEM.match(others[0].text)):
        first, others[0] = Part(None, found[1]), Part("user", others[0].text[found.end() :])
    first = Part(None, SYSTEM.sub("", first.text))
    if not others:
        return [Part("user", first.text)]
    before = "\n".join(line for line in first.text.split("\n") if not PREAMBLE.match(line.strip())).strip()
    others = [Part(part.role, INPUT.sub("\n", part.text)) for part in others]
    if others[0].role == "assistant":
        return [Part("user", before), *others]
    return [Part("system", before), *others] if before else others
