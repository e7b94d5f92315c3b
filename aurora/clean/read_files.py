"""Files of instruction data as Python values: JSON, JSON lines, CSV, TSV, Parquet and Arrow, compressed or not."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import chain, count
from pathlib import Path
from typing import IO

from aurora.clean.layouts import TURN_LISTS
from aurora.clean.parse_rows import Drop, Repeated
from aurora.core.errors import DataError
from aurora.core.parquet import open_parquet

SPACE = re.compile(r"[ \t\r\n\ufeff]*")
BLOCK = 1 << 20  # bytes of text read at a time
LONGEST = 16  # characters of a JSON word, escape or exponent, which a block can cut
BOM = b"\xef\xbb\xbf"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
ENDINGS = {".gz", ".bz2", ".zst", ".lz4"}
# Files beside the rows of a data set: its card, licence, code, and what datasets.save_to_disk notes.
BESIDE = re.compile(
    r"(?i)^(?:\..*|readme.*|licen[cs]e.*|notice.*|citation.*|contributing.*|requirements.*|dataset_infos?\.json"
    r"|dataset_dict\.json|state\.json|cache-.*\.arrow|.*\.(?:md|rst|txt|py|sh|ya?ml|toml|html?|pdf|png|jpe?g|gif|svg|lock))$"
)


def data_files(paths: Iterable[str], pattern: str | None = None) -> list[str]:
    """The files that hold rows, of a fetched source's `paths`: those that `pattern` names, or all but cards and code.

    A source that is one file is that file, whatever its name.
    """
    paths = list(paths)
    if pattern is not None:
        return [path for path in paths if fnmatch(path, pattern)]
    return paths if len(paths) == 1 else [path for path in paths if not BESIDE.match(Path(path).name)]


def read_items(path: Path) -> Iterator[object]:
    """Yields each row of a file as a Python value, or a Drop.

    Raises DataError with file and place if the file is damaged: no row is ever skipped.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        if not start:
            raise DataError(f"{path}: empty file; fetch the source again")
        if start.startswith(b"PAR1"):
            yield from _parquet(path)
        elif start.startswith(b"ARROW1") or start.startswith(b"\xff\xff\xff\xff"):
            yield from _arrow(path, start)
        else:
            yield from _text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); convert the file or fetch it again") from None
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__ == "pyarrow.lib"):
            raise
        why = " ".join(str(getattr(error, "strerror", None) or error).split())  # pyarrow's own has several lines
        raise DataError(f"{path}: damaged or unreadable ({why}); fetch the source again") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where they are compressed, whatever its name."""
    with open(path, "rb") as file:
        start = file.read(4)
    kind = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
    if kind is None:
        with open(path, "rb") as file:
            yield file
    else:
        import pyarrow  # here alone: it takes memory in every process of clean

        with pyarrow.input_stream(str(path), compression=kind) as stream:
            yield io.BufferedReader(stream)


def _text(path: Path) -> Iterator[object]:
    with _opened(path) as file:
        number, line, first = 0, b"\n", b""
        while line and not first:
            number, line = number + 1, file.readline(BLOCK)  # a list can be one line
            first = _stripped(line)
        if not first:
            raise DataError(f"{path}: empty file; fetch the source again")
        if not first.startswith(b"["):
            line += file.readline() if not line.endswith(b"\n") else b""
            first = _stripped(line)
        names = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in ENDINGS]
        if names[-1:] in ([".csv"], [".tsv"]):
            yield from _table(path, first, file, "," if names[-1] == ".csv" else "\t")
        elif first.startswith(b"[") or (first.startswith(b"{") and not _is_json(first)):
            yield from _values(JsonText(path, file, line, number - 1))
        elif first.startswith(b"{"):
            lines = _lines(file, number + 1)
            second = next(lines, None)
            if second is None:
                yield from _unwrapped(_json_line(path, number, first))
            else:
                for place, line in chain([(number, first), second], lines):
                    yield _json_line(path, place, line)
        else:
            raise DataError(
                f"{path}: no JSON, JSON lines, CSV, TSV, Parquet or Arrow: begins with {first[:20]!r}; name a table "
                ".csv or .tsv, or correct uri or files of the source in params.yaml"
            )


def _stripped(line: bytes) -> bytes:
    return line.removeprefix(BOM).strip(b" \t\r\n")  # joined files have a BOM in the middle


def _lines(file: IO[bytes], start: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from `start`."""
    return ((number, line) for number, line in enumerate(map(_stripped, file), start) if line)


def _pairs(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) != len(pairs) and any(values[key] != value for key, value in pairs):
        return Repeated(values)
    return values


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) < 400 else digits  # int() refuses more than 4,300 digits


DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except RecursionError:
        return True
    except ValueError:
        # A first line of JSON lines may be broken too: then the next line begins a row, which `_json_line` reports.
        return line.rstrip().endswith(b"}") and line.count(b"{") <= line.count(b"}")
    return True


def _json_line(path: Path, number: int, line: bytes) -> object:
    try:
        return DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {number} byte {error.start}: {_not_utf8(error, line)}") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {number} column {error.pos + 1}: not JSON ({error.msg}); "
            "correct or remove the line, or fetch the source again"
        ) from None
    except RecursionError:
        return Drop("nested_too_deeply", line[:80].decode("utf-8", "replace"))


def _not_utf8(error: UnicodeDecodeError, content: bytes) -> str:
    if error.reason == "unexpected end of data" and error.end >= len(content):
        return "the file is cut off within a character; fetch it again"
    return f"not UTF-8 ({error.reason}); convert the file or fetch it again"


class JsonText:
    """The text of a file from some place on, which is read on where a value goes on."""

    def __init__(self, path: Path, file: IO[bytes], start: bytes, lines: int) -> None:
        self.path, self.file = path, file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.bytes = 0  # that are decoded
        self.text, self.at = "", 0
        self.lines, self.columns = lines, 0  # in front of the text
        self._decode(start)

    def _decode(self, block: bytes) -> None:
        try:
            self.text += self.decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            place = self.bytes + len(block) - len(error.object) + error.start
            raise DataError(f"{self.path} byte {place}: {_not_utf8(error, error.object)}") from None
        self.bytes += len(block)

    def read_on(self) -> bool:
        """Reads a block more, and forgets what is behind; False at the end, where nothing changes."""
        block = self.file.read(max(BLOCK, len(self.text) - self.at))  # twice as much where a value is long
        if block:
            lines = self.text.count("\n", 0, self.at)
            self.columns = self.at - self.text.rfind("\n", 0, self.at) - 1 + (0 if lines else self.columns)
            self.lines += lines
            self.text, self.at = self.text[self.at :], 0
        self._decode(block)
        return bool(block)

    def next(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            found = SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or not self.read_on():
                return self.text[self.at : self.at + 1]

    def value(self, row: int) -> object:
        """The value that begins here. Raises DataError with `row` for one that is broken."""
        while True:
            try:
                item, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - LONGEST
                if cut and self.read_on():
                    continue
                line = self.text.count("\n", 0, error.pos)
                column_ = error.pos - self.text.rfind("\n", 0, error.pos) + (0 if line else self.columns)
                raise DataError(
                    f"{self.path} row {row} (line {self.lines + line + 1} column {column_}): not JSON ({error.msg}); "
                    "the file is damaged or cut off: fetch it again"
                ) from None
            except RecursionError:
                raise DataError(f"{self.path} row {row}: nested too deeply to be read; remove the row") from None
            if end > len(self.text) - LONGEST and self.read_on():
                continue  # a number may go on
            self.at = end
            return item


def _values(text: JsonText) -> Iterator[object]:
    """The rows of a JSON list, or objects one behind the other, each on any number of lines."""
    if text.next() == "{":
        item = text.value(0)
        if not text.next():
            yield from _unwrapped(item)
            return
        yield item
        for row in count(1):
            if not text.next():
                return
            yield text.value(row)
    text.at += 1
    closed = text.next() == "]"
    row = 0
    while not closed:
        yield text.value(row)
        row += 1
        sign = text.next()
        closed = sign == "]"
        if not closed and sign != ",":
            line = text.lines + text.text.count("\n", 0, text.at) + 1
            raise DataError(
                f"{text.path} line {line}: the JSON list is cut off or broken behind row {row - 1}; "
                "fetch the source again"
            )
        if not closed:
            text.at += 1
            text.next()
    text.at += 1
    if text.next():
        rest = text.text[text.at :]
        raise DataError(f"{text.path}: text behind the end of the JSON list: {rest[:30]!r}; correct the file")


def _unwrapped(item: object) -> Iterator[object]:
    """The rows of a file that is one object: those of its only list of objects, as in {"data": […]}, or itself."""
    row = item if isinstance(item, dict) else {}
    values = [
        value
        for value in row.values()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    ]
    turns = any(turn.keys() & {"role", "from", "human"} for turn in values[0]) if values else False
    if len(values) == 1 and not turns and row.keys().isdisjoint((*TURN_LISTS, "prompt")):
        yield from values[0]
    else:
        yield item


def _table(path: Path, header: bytes, file: IO[bytes], delimiter: str) -> Iterator[object]:
    csv.field_size_limit(1 << 30)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    lines = chain([header.decode("utf-8") + "\n"], text)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next(reader)
        for row in reader:
            if len(row) == len(names):
                yield dict(zip(names, row, strict=True))
            elif row:
                yield Drop("wrong_number_of_cells", f"{len(row)} instead of {len(names)}: {str(row)[:160]}")
    except csv.Error as error:
        raise DataError(
            f"{path} line {reader.line_num}: not {path.suffix[1:].upper()} ({error}); correct the file"
        ) from None


def _parquet(path: Path) -> Iterator[object]:
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=4096):
            yield from batch.to_pylist()


def _arrow(path: Path, start: bytes) -> Iterator[object]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        if start.startswith(b"ARROW1"):
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:  # what datasets.save_to_disk writes
            batches = pyarrow.ipc.open_stream(file)
        for batch in batches:
            for part in range(0, len(batch), 4096):
                yield from batch.slice(part, 4096).to_pylist()
