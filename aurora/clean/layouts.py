"""Layouts of instruction rows: which columns hold prompt and answer, and how a layout is recognised."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from aurora.core.errors import DataError
from aurora.core.messages import Role
from aurora.sources.source import Part

TURN_LISTS = ("messages", "conversation", "conversations", "dialog", "dialogue")  # columns that hold a list of turns
SPELLINGS = {  # met in published files -> Alpaca column
    "指示": "instruction", "指令": "instruction", "说明": "instruction", "输入": "input", "输出": "output",
}  # fmt: skip
NAMES_OF_ROLES: dict[Role, str] = {
    "user": "user human prompter usr 用户 人类 提问者",
    "assistant": "assistant gpt chatgpt model bot chatbot ai bard bing 助手 助理 机器人 function_call",
    "system": "system developer 系统",
    "tool": "tool function observation ipython tool_response function_response",
}
ROLES = {name: role for role, names in NAMES_OF_ROLES.items() for name in names.split()}
PREFERENCE = {"chosen", "rejected"}


@dataclass(frozen=True)
class Layout:
    """The columns of a row. A layout has a list of turns, or prompt and answer."""

    name: str
    prompt: tuple[str, ...] = ()
    """Columns that make the prompt, joined by line ends; the first, or one behind it, must be there."""
    answer: tuple[str, ...] = ()
    """Columns of which one holds the answer."""
    turns: tuple[str, ...] = ()
    """Columns of which one holds the list of turns."""
    without: tuple[str, ...] = ()
    """Columns that a row of this layout does not have, for detection."""
    system: str = "system"
    history: str = "history"
    tools: str = "tools"
    roles: Mapping[str, Role] = field(default_factory=lambda: ROLES)
    input_expected: bool = False
    """Whether the source has a column `input`, so that a row without it may have it under another name."""

    def fits(self, keys: set[str]) -> bool:
        """Whether rows with these filled columns are of this layout."""
        if self.turns:
            return any(name in keys for name in self.turns)
        return (
            self.prompt[0] in keys
            and any(name in keys for name in self.answer)
            and not any(name in keys for name in self.without)
        )

    @cached_property
    def known(self) -> frozenset[str]:
        """All columns that are read."""
        return frozenset((*self.prompt, *self.answer, *self.turns, self.system, self.history, self.tools))


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("alpaca", ("instruction", "input"), ("output",)),
        Layout("sharegpt", turns=TURN_LISTS),
        Layout("messages", turns=TURN_LISTS),
        Layout("prompt_completion", ("prompt",), ("completion",)),
        Layout("query_response", ("query",), ("response",)),
        Layout("question_answer", ("question",), ("answer",)),
        Layout("input_target", ("input",), ("target", "targets"), without=("instruction",)),
        Layout("input_output", ("input",), ("output",), without=("instruction",)),
    )
}


def detect(items: Iterable[object]) -> list[str]:
    """Names of the layouts that the filled columns of most of these rows fit; sharegpt includes messages."""
    rows = [item for item in items if isinstance(item, dict)]
    found = []
    for name, layout in LAYOUTS.items():
        fitting = sum(layout.fits(filled_columns(row)) for row in rows)
        if name != "messages" and rows and 2 * fitting > len(rows):
            found.append(name)
    return found


def filled_columns(row: dict) -> set[str]:
    """The columns of a row that hold something, in Alpaca's spelling."""
    return {column(key) for key, value in row.items() if value not in (None, "", [])}


def column(key: object) -> str:
    """A column's name without blanks and capitals, in Alpaca's spelling."""
    name = str(key).strip().lower()
    return SPELLINGS.get(name, name)


def layout_of(
    source: str,
    format_: str,
    items: Sequence[object],
    columns: Mapping[Part, str] | None = None,
    roles: Mapping[str, Role] | None = None,
) -> Layout:
    """The layout of a source, by its entry in params.yaml and its first rows `items`.

    Raises DataError where format is auto and the rows fit no layout, or more than one.
    """
    if columns:
        layout = mapped(columns)
    elif format_ == "auto":
        found = detect(items)
        if len(found) != 1:
            raise DataError(
                f"sources.{source}.format: auto finds {' and '.join(found) or 'no layout'} in rows with "
                f"{shown_keys(items)}; {'choose one' if found else 'map them by columns: {prompt: …, answer: …}'}"
            )
        layout = LAYOUTS[found[0]]
    else:
        layout = LAYOUTS[format_]
    has_input = any(isinstance(item, dict) and "input" in map(column, item) for item in items)
    known = ROLES | {re.sub(r"\s", "", name).lower(): role for name, role in (roles or {}).items()}
    return replace(layout, roles=known, input_expected=has_input and "input" in layout.prompt)


def mapped(columns: Mapping[Part, str]) -> Layout:
    """The layout that `columns` of a source describes: part of a conversation -> column."""
    names = {part: column(name) for part, name in columns.items()}
    prompt = tuple(names[part] for part in ("prompt", "input") if part in names)
    turns = (names["messages"],) if "messages" in names else ()
    return Layout(
        "columns",
        prompt=() if turns else prompt,
        answer=() if turns else (names["answer"],),
        turns=turns,
        system=names.get("system", "system"),
        history=names.get("history", "history"),
        tools=names.get("tools", "tools"),
    )


def shown_keys(items: Sequence[object]) -> str:
    """The columns of the first row, for a message."""
    row = next((item for item in items if isinstance(item, dict)), {})
    return "keys " + (", ".join(str(key)[:40] for key in list(row)[:12]) or "(none)")


def advice(items: Sequence[object], layout: Layout) -> str:
    """What would fit rows that could not be read by `layout`; empty where nothing better is known."""
    found = [name for name in detect(items) if name != layout.name and LAYOUTS[name].turns != layout.turns]
    if any(isinstance(item, dict) and set(map(column, item)) >= PREFERENCE for item in items):
        return "rows are preference pairs: columns: {prompt: prompt, answer: chosen} trains on the chosen answers"
    if found:
        return f"{shown_keys(items)}: format: {' or '.join(found)}?"
    return f"{shown_keys(items)}: map them by columns: {{prompt: …, answer: …}}"
