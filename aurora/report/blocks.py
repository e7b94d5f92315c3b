"""A page as a list of blocks, written as Markdown or as HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aurora.core.page import render

TEMPLATE = Path(__file__).with_name("blocks.html")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; level 1 is the page's title."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Link:
    """A file of the repository, by its path from the root, within a paragraph."""

    path: str


class Paragraph:
    """Plain text, with links in it."""

    def __init__(self, *parts: str | Link) -> None:
        self.parts = parts


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of plain text; columns in `numbers` are set to the right, rows in `strong` stand out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG picture; Markdown refers to it by its file's name."""

    file: str
    svg: str
    text: str  # shown in its place where pictures are not


Block = Heading | Paragraph | Table | Picture


def escaped(text: str) -> str:
    """Text within a Markdown paragraph or cell, where it can open no heading, table or markup of its own."""
    flat = " ".join(re.split(r"[ \t\r\n\f\v]+", text)).strip(" ")  # a no-break space stays
    for mark in "\\`*_[]<>#|~$":
        flat = flat.replace(mark, "\\" + mark)
    return flat


def markdown(blocks: Sequence[Block], pictures: str) -> str:
    """The page as Markdown; `pictures` is the folder of its pictures, as a link has it."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {escaped(text)}")
            case Paragraph():
                parts.append("".join(map(_inline, block.parts)))
            case Picture(file, _, text):
                parts.append(f"![{escaped(text)}]({pictures}/{file})")
            case Table():
                parts.append("\n".join(_rows(block)))
    return "\n\n".join(parts) + "\n"


def _inline(part: str | Link) -> str:
    if isinstance(part, Link):
        return f"[{escaped(part.path)}]({part.path})"
    edges = " " * part.startswith(" "), " " * part.endswith(" ")
    return f"{edges[0]}{escaped(part)}{edges[1]}"


def _rows(table: Table) -> list[str]:
    lines = [table.header, *table.rows]
    cells = [[escaped(cell) for cell in line] for line in lines]
    for index in table.strong:
        cells[index + 1] = [f"**{cell}**" if cell else "" for cell in cells[index + 1]]
    cells.insert(1, ["---:" if index in table.numbers else "---" for index in range(len(table.header))])
    return [f"| {' | '.join(line)} |" for line in cells]


def html(blocks: Sequence[Block], title: str, root: str) -> str:
    """The page as HTML, pictures within; `root` leads from its folder to the root of the repository, with a slash."""
    shown = [{"kind": type(block).__name__, "block": block} for block in blocks]
    return render(TEMPLATE, title=title, blocks=shown, root=root)
