"""Rows of the published instruction formats, as messages or as the reason why a row has none."""

import json
import math
import re
from dataclasses import dataclass

from aurora.core.messages import Message

KEYS = {  # spellings met in published files -> Alpaca key
    "instruction": "instruction",
    "指示": "instruction",
    "指令": "instruction",
    "说明": "instruction",
    "input": "input",
    "输入": "input",
    "output": "output",
    "输出": "output",
    "system": "system",
    "history": "history",
}
BESIDE = {"note", "id", "category", "source", "lang", "language", "tags", "注", "备注", "注释"}  # not input
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}
NO_INPUT = re.compile(
    r"[\s\"'“”‘’<>《》〈〉\[\]【】()（）]*(no\s*input|noinput|无输入|无需输入|不需要输入|没有输入|不需输入|空输入|无|n/?a|none)"
    r"[\s\"'“”‘’<>《》〈〉\[\]【】()（）.。,，!！]*",
    re.IGNORECASE,
)
STRAY_TEXT = 20  # characters from which a text under an unknown key may be the row's missing input


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a row goes: a reason that is counted, and what of the row shows it."""

    reason: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Turns:
    """Messages as a source gives them: roles may not alternate yet, texts may be empty."""

    messages: tuple[Message, ...]
    mended: tuple[str, ...] = ()  # names of certain repairs


class Repeated(dict):
    """A JSON object in which one key stands twice with different values."""


def parse(item: object, format_: str) -> Turns | Drop:
    """One row of any of the formats to turns; a row that cannot be read with certainty gives a Drop."""
    if isinstance(item, Drop):
        return item
    if not isinstance(item, dict):
        return Drop("not_an_object", repr(item)[:200])
    if isinstance(item, Repeated):
        return Drop("repeated_key", json.dumps(item, ensure_ascii=False, default=str)[:200])
    if format_ == "alpaca":
        return _alpaca(item)
    for key in ("messages", "conversation", "conversations"):
        if isinstance(item.get(key), list):
            return _turns(item[key])
    given = ", ".join(f"{str(key)[:40]}: {type(value).__name__}" for key, value in list(item.items())[:8])
    return Drop("missing_key", f"no list under conversation, conversations or messages; there is {given}")


class NotText(Exception):
    """A value that is neither text nor null nor a number."""


def _text(value: object, mended: list[str]) -> str:
    if value is None:
        return ""  # JSON null is no text, least of all "None"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        mended.append("number_to_text")
        return str(value)
    raise NotText(f"{type(value).__name__} instead of text: {str(value)[:120]}")


def _alpaca(item: dict) -> Turns | Drop:
    fields: dict[str, object] = {}
    mended: list[str] = []
    stray = ""
    for key, value in item.items():
        name = KEYS.get(str(key).strip().lower())
        if name is None:
            if isinstance(value, str) and len(value.strip()) >= STRAY_TEXT and str(key).lower() not in BESIDE:
                stray = stray or f"{str(key)[:40]}: {value[:160]}"
            continue
        if name != key:
            mended.append("key_translated")
        if name in fields and _filled(fields[name]) and _filled(value) and fields[name] != value:
            return Drop("conflicting_keys", f"two different values for {name}: {str(value)[:120]}")
        if not _filled(fields.get(name)):
            fields[name] = value
    missing = [name for name in ("instruction", "output") if name not in fields]
    if missing:
        return Drop(
            "missing_key", f"no {' and no '.join(missing)}; there is {', '.join(map(str, item))[:160]}"
        )
    try:
        prompt = _text(fields["instruction"], mended)
        extra = _text(fields.get("input"), mended)
        answer = _text(fields["output"], mended)
        system = _text(fields.get("system"), mended)
        earlier = _history(fields.get("history"), mended)
    except NotText as error:
        return Drop("wrong_type", str(error))
    if stray and not extra.strip():
        return Drop("stray_key", stray)
    if NO_INPUT.fullmatch(extra):
        extra = ""
        mended.append("no_input_marker")
    if extra.strip() and prompt.strip():
        prompt = f"{prompt}\n{extra}"
    messages = [*earlier, Message("user", prompt), Message("assistant", answer)]
    return Turns(_with_system(messages, system, mended), tuple(dict.fromkeys(mended)))


def _filled(value: object) -> bool:
    return value is not None and value != ""


def _history(value: object, mended: list[str]) -> list[Message]:
    messages = []
    if value is None:
        return messages
    if not isinstance(value, list):
        raise NotText(f"history is {type(value).__name__} instead of a list")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise NotText(f"history holds {str(pair)[:80]} instead of pairs")
        messages += [Message("user", _text(pair[0], mended)), Message("assistant", _text(pair[1], mended))]
    return messages


def _with_system(messages: list[Message], system: str, mended: list[str]) -> tuple[Message, ...]:
    # Mixtral's template has no system role; its authors put the text in front of the first prompt.
    if system.strip() and messages and messages[0].role == "user":
        mended.append("system_joined")
        messages[0] = Message("user", f"{system.strip()}\n\n{messages[0].content}")
    return tuple(messages)


def _turns(items: list) -> Turns | Drop:
    messages: list[Message] = []
    mended: list[str] = []
    system = ""
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            return Drop("not_an_object", f"turn {index}: {str(item)[:120]}")
        if isinstance(item, Repeated):
            return Drop(
                "repeated_key", f"turn {index}: {json.dumps(item, ensure_ascii=False, default=str)[:160]}"
            )
        try:
            if "human" in item or "assistant" in item:
                messages.append(Message("user", _text(item.get("human"), mended)))
                messages.append(Message("assistant", _text(item.get("assistant"), mended)))
                continue
            given = item.get("role", item.get("from"))
            role = ROLES.get(given.strip().lower()) if isinstance(given, str) else None
            if role is None:
                return Drop("unknown_role", f"turn {index}: {str(given)[:80]}")
            if "content" not in item and "value" not in item:
                return Drop("missing_key", f"turn {index}: neither content nor value")
            text = _text(item.get("content", item.get("value")), mended)
        except NotText as error:
            return Drop("wrong_type", f"turn {index}: {error}")
        if role != "system":
            messages.append(Message(role, text))
        elif text.strip():
            if messages:
                return Drop("unknown_role", f"turn {index}: a system turn behind the first")
            system = text
    return Turns(_with_system(messages, system, mended), tuple(dict.fromkeys(mended)))
