"""Files of the published instruction formats, as Python values: a JSON list, JSON lines, or Parquet."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from aurora.clean.parse_rows import Drop, Repeated
from aurora.core.errors import DataError

SPACE = re.compile(r"[ \t\r\n]*")


def read_items(path: Path) -> Iterator[object]:
    """Yields each row of a JSON list, of JSON lines or of a Parquet file as a Python value, or a Drop.

    Raises DataError with file and place if the file is damaged: no row is ever skipped.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(1 << 16)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch the source again") from None
    if start.startswith(b"PAR1"):
        yield from _parquet(path)
        return
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1]
    if first == b"[":
        yield from _json_list(path)
    elif first == b"{":
        yield from _json_lines(path)
    elif not first:
        raise DataError(f"{path}: empty file; fetch the source again")
    else:
        raise DataError(
            f"{path}: neither a JSON list, nor JSON lines, nor Parquet: begins with {start[:20]!r}; "
            "correct uri or format of the source in params.yaml"
        )


def _pairs(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) != len(pairs) and any(values[key] != value for key, value in pairs):
        return Repeated(values)
    return values


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) < 400 else digits  # int() refuses more than 4,300 digits


DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer)


def _json_list(path: Path) -> Iterator[object]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} byte {error.start}: not UTF-8 ({error.reason}); convert the file or fetch it again"
        ) from None
    at = SPACE.match(text, SPACE.match(text).end() + 1).end()
    row = 0
    closed = text.startswith("]", at)
    while not closed:
        try:
            item, at = DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} row {row} (line {error.lineno} column {error.colno}): not JSON ({error.msg}); "
                "the file is damaged or cut off: fetch it again"
            ) from None
        except RecursionError:
            raise DataError(f"{path} row {row}: nested too deeply to be read; remove the row") from None
        yield item
        row += 1
        at = SPACE.match(text, at).end()
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            line = text.count("\n", 0, at) + 1
            raise DataError(
                f"{path} line {line}: the JSON list is cut off or broken behind row {row - 1}; fetch the source again"
            )
        if not closed:
            at = SPACE.match(text, at + 1).end()
    rest = text[at + 1 :].strip()
    if rest:
        raise DataError(f"{path}: text behind the end of the JSON list: {rest[:30]!r}; correct the file")


def _json_lines(path: Path) -> Iterator[object]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.strip(b" \t\r\n")
            if not line:
                continue  # a blank line is no row
            try:
                yield DECODER.decode(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} line {number} byte {error.start}: not UTF-8; convert the file or fetch it again"
                ) from None
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path} line {number} column {error.pos + 1}: not JSON ({error.msg}); "
                    "correct or remove the line, or fetch the source again"
                ) from None
            except RecursionError:
                yield Drop("nested_too_deeply", line[:80].decode("utf-8", "replace"))


def _parquet(path: Path) -> Iterator[object]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())  # pyarrow's own has several lines
        raise DataError(f"{path}: damaged Parquet ({why}); fetch the source again") from None
