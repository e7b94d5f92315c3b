"""A page as a list of blocks, written as Markdown or as one HTML file without scripts or outside links."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """body{font:15px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border-bottom:1px solid #ddd;padding:.2rem .7rem;
text-align:left;vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:2.2rem}
svg{max-width:100%;height:auto}"""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; level 1 is the page's title."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of plain text; columns in `numbers` are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG picture; Markdown refers to it by its file's name."""

    file: str
    svg: str
    text: str  # what stands for it where it is not shown


Block = Heading | Paragraph | Table | Picture


def escaped(text: str) -> str:
    """Text within a Markdown paragraph or cell, where it can open no heading, table or markup of its own."""
    flat = " ".join(text.split())
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
            case Paragraph(text):
                parts.append(escaped(text))
            case Picture(file, _, text):
                parts.append(f"![{escaped(text)}]({pictures}/{file})")
            case Table(header, rows, numbers):
                rule = ["---:" if index in numbers else "---" for index in range(len(header))]
                lines = [[escaped(cell) for cell in row] for row in (header, *rows)]
                lines.insert(1, rule)
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def html(blocks: Sequence[Block], title: str) -> str:
    """The page as HTML, pictures within."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"]
    parts.append(f"<style>{STYLE}</style>")
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"<h{level}>{escape(text)}</h{level}>")
            case Paragraph(text):
                parts.append(f"<p>{escape(text)}</p>")
            case Picture(_, svg, _):
                parts.append(svg.strip())
            case Table(header, rows, numbers):
                lines = [_cells(header, "th", numbers), *(_cells(row, "td", numbers) for row in rows)]
                parts.append("<table>" + "\n".join(lines) + "</table>")
    return "\n".join(parts) + "\n"


def _cells(row: Sequence[str], tag: str, numbers: frozenset[int]) -> str:
    cells = (
        f"<{tag}{' class=n' if index in numbers else ''}>{escape(cell)}" for index, cell in enumerate(row)
    )
    return "<tr>" + "".join(cells)
