"""Turns rows of instruction data into messages, or into the reason why a row is dropped."""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from aurora.clean.layouts import PREFERENCE, Layout, column
from aurora.core.messages import Message, Role

# Columns of text that are never the missing input of a row.
BESIDE = {"note", "id", "category", "source", "lang", "language", "tags", "注", "备注", "注释"}
PAIRS = (  # keys of a turn list's item that holds a whole round
    ("human", "assistant"), ("user", "assistant"), ("input", "output"), ("prompt", "response"),
    ("question", "answer"), ("query", "response"), ("instruction", "output"),
)  # fmt: skip
NO_INPUT = re.compile(
    r"[\s\"'“”‘’<>《》〈〉\[\]【】()（）]*(no\s*input|noinput|无输入|无需输入|不需要输入|没有输入|不需输入|空输入|无|n/?a|none)"
    r"[\s\"'“”‘’<>《》〈〉\[\]【】()（）.。,，!！]*",
    re.IGNORECASE,
)
WORD_ALONE = re.compile(r"无|n/?a|none", re.IGNORECASE)  # can be the real input of an instruction that asks for one
ASKS_FOR_INPUT = re.compile(
    r"[:：]\s*$|以下|下面|下列|给定|给出的|所给|提供的|输入|[这该此](?:个|段|句|篇|些)?[^，。]{0,6}[词字句文话值数题单]|翻译|译成|改写|判断|识别|分类|解释一下"
)
STRAY_TEXT = 20  # characters from which a text under an unknown column may be the row's missing input
NOT_TRAINED = {
    "weight": 0, "loss_weight": 0, "loss": False, "train": False, "training": False, "mask": True
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a row is dropped: a reason that is counted, and the evidence in the row."""

    reason: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Turns:
    """Messages as a source gives them: roles may not alternate yet, texts may be empty."""

    messages: tuple[Message, ...]
    repaired: tuple[str, ...] = ()  # names of certain repairs
    tools: str = ""  # JSON list of the functions that may be called


class Repeated(dict):
    """A JSON object that has one key twice with different values."""


class Unreadable(Exception):
    """A row, or part of one, that cannot be read with certainty."""

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(evidence)
        self.drop = Drop(reason, evidence)


def parse(item: object, layout: Layout) -> Turns | Drop:
    """One row to turns; a row that cannot be read with certainty gives a Drop."""
    if isinstance(item, Drop):
        return item
    if not isinstance(item, dict):
        return Drop("not_an_object", repr(item)[:200])
    if isinstance(item, Repeated):
        return Drop("repeated_key", json.dumps(item, ensure_ascii=False, default=str)[:200])
    repaired: list[str] = []
    try:
        row = _columns(item, layout, repaired)
        if row.get("label") is False:
            raise Unreadable("marked_as_bad", "label: false")
        system = _text(row.get(layout.system), repaired) if layout.system in row else ""
        messages = [Message("system", system)] if system.strip() else []
        messages += _history(row.get(layout.history), repaired)
        messages += (_turn_list if layout.turns else _pair)(row, layout, repaired)
        tools = _json(row.get(layout.tools)) if layout.turns and layout.tools in row else ""
    except Unreadable as error:
        return error.drop
    return Turns(tuple(messages), tuple(dict.fromkeys(repaired)), tools)


def _columns(item: dict, layout: Layout, repaired: list[str]) -> dict[str, object]:
    """The row by the names of its columns. Raises Unreadable for two values of one column."""
    row: dict[str, object] = {}
    for key, value in item.items():
        name = key if key in layout.known else column(key)
        if name != key and name in layout.known:
            repaired.append("key_translated")
        if name in row and name in layout.known and _filled(row[name]) and _filled(value) and row[name] != value:
            raise Unreadable("conflicting_keys", f"two different values for {name}: {str(value)[:120]}")
        if not _filled(row.get(name)):
            row[name] = value
    return row


def _pair(row: dict, layout: Layout, repaired: list[str]) -> list[Message]:
    """The messages of a row with prompt and answer in columns of their own."""
    answer = next((name for name in layout.answer if name in row), None)
    prompts = [name for name in layout.prompt if name in row]
    missing = [name for name, given in ((layout.prompt[0], prompts), (layout.answer[0], answer)) if not given]
    if missing and row.keys() >= PREFERENCE:
        raise Unreadable("preference_pair", f"chosen and rejected; no {' and no '.join(missing)}")
    if missing:
        raise Unreadable("missing_key", f"no {' and no '.join(missing)}; there is {', '.join(row)[:160]}")
    if isinstance(row[prompts[0]], list) or isinstance(row[answer], list):  # TRL's conversational prompt-completion
        parts = [(row[prompts[0]], "user"), (row[answer], "assistant")]
        lists = [part if _is_turn_list(part) else [{"role": role, "content": part}] for part, role in parts]
        return _turns([turn for part in lists for turn in part], layout, repaired)
    texts = [_text(row[name], repaired) for name in prompts]
    if layout.input_expected and "input" not in row:
        _refuse_stray_input(row, layout)
    if len(texts) > 1 and NO_INPUT.fullmatch(texts[1]):
        bare = WORD_ALONE.fullmatch(texts[1].strip())
        if not (bare and ASKS_FOR_INPUT.search(texts[0])):
            texts.pop()
            repaired.append("no_input_marker")
    prompt = "\n".join(text for text in texts if text.strip())
    return [Message("user", prompt), Message("assistant", _text(row[answer], repaired), _is_trained(row))]


def _is_trained(item: dict) -> bool:
    if NOT_TRAINED.keys().isdisjoint(item):
        return True
    return not any(name in item and _same(item[name], value) for name, value in NOT_TRAINED.items())


def _refuse_stray_input(row: dict, layout: Layout) -> None:
    for name, value in row.items():
        if isinstance(value, str) and len(value.strip()) >= STRAY_TEXT and name not in layout.known | BESIDE:
            raise Unreadable("stray_key", f"no input, but {name[:40]}: {value[:160]}")


def _turn_list(row: dict, layout: Layout, repaired: list[str]) -> list[Message]:
    """The messages of a row with a list of turns."""
    lists = [row[name] for name in layout.turns if isinstance(row.get(name), list | str | dict)]
    value = next(filter(_filled, lists), next(iter(lists), None))
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list of turns in a column of text, as in CSV
        try:
            value = json.loads(value)
        except ValueError:
            raise Unreadable("wrong_type", f"turns that are no JSON: {value[:120]}") from None
    if isinstance(value, dict) and all(isinstance(part, list) for part in value.values()):
        # Arrow gives a list of objects as an object of lists, as datasets' Sequence does.
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if not isinstance(value, list):
        if row.keys() >= PREFERENCE:
            raise Unreadable("preference_pair", "chosen and rejected")
        given = ", ".join(f"{key[:40]}: {type(value).__name__}" for key, value in list(row.items())[:8])
        names = " or ".join(layout.turns[:3])
        raise Unreadable("missing_key", f"no list under {names}; there is {given}")
    if row.keys() >= PREFERENCE and not _same(row["chosen"], None):
        raise Unreadable("preference_pair", "chosen and rejected behind a list of turns")
    return _turns(value, layout, repaired)


def _turns(items: list, layout: Layout, repaired: list[str]) -> list[Message]:
    messages: list[Message] = []
    for index, item in enumerate(items):
        try:
            messages += _turn(item, layout.roles, repaired)
        except Unreadable as error:
            raise Unreadable(error.drop.reason, f"turn {index}: {error}") from None
    return messages


def _turn(item: object, roles: Mapping[str, Role], repaired: list[str]) -> list[Message]:
    """The messages of one item of a turn list: a turn, or a whole round."""
    if not isinstance(item, dict):
        raise Unreadable("not_an_object", str(item)[:120])
    if isinstance(item, Repeated):
        raise Unreadable("repeated_key", json.dumps(item, ensure_ascii=False, default=str)[:160])
    train = _is_trained(item)
    given = next((item[key] for key in ("role", "from", "speaker") if _filled(item.get(key))), None)
    if given is None:
        for user, assistant in PAIRS:
            if user in item or (user == "human" and assistant in item):
                system = _text(item.get("system"), repaired)
                return [
                    *([Message("system", system)] if system.strip() else []),
                    Message("user", _text(item.get(user), repaired)),
                    Message("assistant", _text(item.get(assistant), repaired), train),
                ]
    role = roles.get(re.sub(r"\s", "", given).lower()) if isinstance(given, str) else None
    if role is None:
        raise Unreadable("unknown_role", str(given)[:80])
    keys = [key for key in ("content", "value", "text") if key in item]
    calls = item.get("tool_calls") or item.get("function_call")
    if not keys and not calls:
        raise Unreadable("missing_key", "neither content nor value")
    text = next((item[key] for key in keys if _filled(item[key])), None)
    if given == "function_call":
        calls, text = text, None
    if _filled(item.get("reasoning_content")):
        repaired.append("reasoning_removed")
    text = _text(text, repaired)
    if role == "system" and not text.strip():
        return []
    return [Message(role, text, train, _calls(calls) if calls and role == "assistant" else "")]


def _calls(value: object) -> str:
    """Tool calls as JSON in OpenAI's form: a list of {type, function: {name, arguments}}."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Unreadable("wrong_type", f"a tool call that is no JSON: {value[:120]}") from None
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unreadable("wrong_type", f"a tool call without a name: {str(call)[:120]}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                raise Unreadable("wrong_type", f"arguments that are no JSON: {arguments[:120]}") from None
        arguments = _without_nulls(arguments)  # Arrow adds the arguments of all other calls as null
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return json.dumps(calls, ensure_ascii=False)


def _without_nulls(value: object) -> object:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _json(value: object) -> str:
    """The functions that may be called, as a JSON list; empty without any."""
    try:
        tools = json.loads(value) if isinstance(value, str) and value.strip() else value
    except ValueError:
        raise Unreadable("wrong_type", f"tools that are no JSON: {str(value)[:120]}") from None
    if not _filled(tools) or tools == []:
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unreadable("wrong_type", f"tools that are no list of objects: {str(value)[:120]}")
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return json.dumps(tools, ensure_ascii=False)


def _text(value: object, repaired: list[str]) -> str:
    if value is None or value != value:  # JSON null and NaN, pandas' null, are no text, least of all "None"
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        repaired.append("number_to_text")
        return str(value)
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "\n".join(part["text"] for part in value)
    raise Unreadable("wrong_type", f"{type(value).__name__} instead of text: {str(value)[:120]}")


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _is_turn_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) and "role" in part for part in value)


def _filled(value: object) -> bool:
    return value is not None and value == value and value not in ("", [])


def _same(value: object, expected: object) -> bool:
    """Equal, and both a truth value or neither: 0 is not false here."""
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)


def _history(value: object, repaired: list[str]) -> list[Message]:
    messages: list[Message] = []
    if not _filled(value):
        return messages
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list):
        raise Unreadable("wrong_type", f"history is {type(value).__name__} instead of a list")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unreadable("wrong_type", f"history holds {str(pair)[:80]} instead of pairs")
        messages += [Message("user", _text(pair[0], repaired)), Message("assistant", _text(pair[1], repaired))]
    return messages
