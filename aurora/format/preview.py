"""Rows as a person sees them: every token, the trained ones coloured, in the terminal or on an HTML page."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aurora.core.files import write_text
from aurora.core.page import render
from aurora.core.parquet import open_parquet
from aurora.format.byte_pieces import BytePieces
from aurora.prompt.mistral import IGNORED
from aurora.prompt.tokenizer import sentencepiece_processor

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PAGE_ROWS = 4  # rows of each source on the page
PAGE_TOKENS = 1200  # tokens shown of a row
TEMPLATE = Path(__file__).with_name("preview.html")


def vocabulary(tokenizer: Path, template: bool | None = None) -> "SentencePieceProcessor | BytePieces":
    """The pieces of a base, by its folder or its tokenizer.model; `template`: those of its tokenizer.json.

    Where it is None, the folder's tokenizer.model comes first. Raises ModelError where there is neither.
    """
    file = tokenizer / "tokenizer.model" if tokenizer.is_dir() else tokenizer
    other = file.with_name("tokenizer.json")
    if template or (template is None and other.is_file() and not file.is_file()):
        from tokenizers import Tokenizer

        return BytePieces(Tokenizer.from_file(str(other)))
    return sentencepiece_processor(file)


def tokens(
    processor: "SentencePieceProcessor | BytePieces", ids: Sequence[int]
) -> Iterator[tuple[str, list[int], bool]]:
    """Text, ids and whether it is a control token, of each token; neighbouring byte tokens are one text."""
    if isinstance(processor, BytePieces):
        yield from processor.spell(ids)
        return
    start = 0
    for is_byte, run in groupby(ids, key=processor.is_byte):
        run = list(run)
        if is_byte:
            raw = bytes(int(processor.id_to_piece(index)[3:5], 16) for index in run)
            for text, length in characters(raw):
                yield text, run[start : start + length], False
                start += length
            start = 0
        else:
            for index in run:
                yield processor.id_to_piece(index).replace("▁", " "), [index], processor.is_control(index)


def characters(raw: bytes) -> Iterator[tuple[str, int]]:
    """The characters that UTF-8 bytes spell, each with its number of bytes; U+FFFD for a byte that spells none."""
    while raw:
        for length in range(1, 5):
            try:
                yield raw[:length].decode(), length
                break
            except UnicodeDecodeError:
                continue
        else:
            length = 1
            yield "\ufffd", length
        raw = raw[length:]


def terminal_row(processor: "SentencePieceProcessor | BytePieces", row: dict) -> str:
    """One row for the terminal: trained tokens green, the others plain and dim, control tokens bold."""
    head = f"{row['id']}  {row['source']}  {counted(row)}"
    lines = [click.style(head, bold=True)]
    pieces = []
    position = 0
    for text, ids, control in tokens(processor, row["input_ids"]):
        trained = row["labels"][position] != IGNORED
        position += len(ids)
        pieces.append(((trained, control), printable(text)))
    for (trained, control), run in groupby(pieces, key=lambda piece: piece[0]):
        # None and not False, which click writes as a code that ends bold and dim alike.
        style = {"fg": "green" if trained else None, "dim": None if trained else True, "bold": control or None}
        text = "".join(piece for _, piece in run)
        # Every line is styled on its own, so that pagers that reset at line ends keep the colour.
        lines.append("\n".join(click.style(line, **style) if line else "" for line in text.split("\n")))
    return f"{lines[0]}\n{''.join(lines[1:])}\n"


def printable(text: str) -> str:
    """The text with control characters as U+2400 pictures, so that no row can steer a terminal."""
    shown = []
    for sign in text:
        if sign in "\n\t" or sign.isprintable():
            shown.append(sign)
        elif ord(sign) < 32:
            shown.append(chr(0x2400 + ord(sign)))
        else:
            shown.append(f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}")
    return "".join(shown)


def counted(row: dict) -> str:
    """`412 tokens, 380 trained`."""
    trained = sum(label != IGNORED for label in row["labels"])
    return f"{len(row['input_ids']):,} tokens, {trained:,} trained"


def shown_row(processor: "SentencePieceProcessor | BytePieces", row: dict) -> dict:
    """One row for the page: its head, its runs of tokens, and how many tokens are left out."""
    runs, position = [], 0
    for text, ids, control in tokens(processor, row["input_ids"][:PAGE_TOKENS]):
        trained = row["labels"][position] != IGNORED
        position += len(ids)
        runs.append({"text": printable(text), "ids": ids, "control": control, "trained": trained})
    rest = max(0, len(row["input_ids"]) - PAGE_TOKENS)
    return {"source": row["source"], "id": row["id"], "counted": counted(row), "runs": runs, "rest": rest}


def first_rows(path: Path, count: int) -> dict[str, list[dict]]:
    """The first `count` rows of each source of a file of token rows; holds one row group at a time."""
    found: dict[str, list[dict]] = {}
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            places: dict[str, list[int]] = {}
            for place, source in enumerate(file.read_row_group(group, ["source"])["source"].to_pylist()):
                if len(found.get(source, ())) + len(places.get(source, ())) < count:
                    places.setdefault(source, []).append(place)
            if places:
                table = file.read_row_group(group)
                for source, chosen in places.items():
                    found.setdefault(source, []).extend(table.take(chosen).to_pylist())
    return found


def write_page(rows: Path, tokenizer: Path, page: Path, template: bool | None = None) -> None:
    """Writes an HTML page of the first PAGE_ROWS training rows of each source in the folder `rows`.

    `tokenizer` and `template` are as `vocabulary` takes them.
    """
    processor = vocabulary(tokenizer, template)
    found = first_rows(rows / "train.parquet", PAGE_ROWS)
    shown = [shown_row(processor, row) for source in sorted(found) for row in found[source]]
    write_text(page, render(TEMPLATE, title="What the model sees", rows=shown, most=PAGE_ROWS))
