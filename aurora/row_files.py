"""Conversations read in checked batches, and rows written in whole row groups."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet

from aurora.chat import check_messages
from aurora.errors import DataError

SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),  # content id; .1, .2 … behind it on rows that continue a conversation
        ("source", pyarrow.string()),
        ("input_ids", pyarrow.list_(pyarrow.int32())),
        ("labels", pyarrow.list_(pyarrow.int32())),
        ("prompt", pyarrow.string()),  # text of the row's first user turn
        ("reply", pyarrow.string()),  # text of its answer
    ]
)
BATCH = 1024  # conversations of a batch; bounds the memory
ROW_GROUP = 8192  # rows of a Parquet row group, as in aurora.store


def read_batches(path: Path, size: int = BATCH) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
    """Batches of conversations, each with the number of its first row.

    Raises DataError if the file is missing or damaged, lacks a column, or is not sorted by a unique id.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; it is written by: dvc repro clean")
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [
            name for name in ("id", "source", "messages", "cluster") if name in file.schema_arrow.names
        ]
        kinds = {name: str(file.schema_arrow.field(name).type) for name in columns}
        if not {"id", "source", "messages"} <= kinds.keys() or "role: " not in kinds["messages"]:
            raise DataError(
                f"{path}: columns are {file.schema_arrow.names}, not id, source, messages; run dvc repro clean"
            )
        first, last = 0, ""
        for batch in file.iter_batches(batch_size=size, columns=columns):
            ids = [last, *batch["id"].to_pylist()]
            for index, (before, after) in enumerate(pairwise(ids)):
                if not after or before >= after:
                    raise DataError(
                        f"{path} row {first + index}: id {after} does not come after {before or 'nothing'}; "
                        "ids must be unique and sorted: run dvc repro clean"
                    )
            if "cluster" in columns and batch["cluster"].null_count:
                raise DataError(
                    f"{path} rows {first} to {first + len(batch)}: a cluster is null; run dvc repro clean"
                )
            yield first, batch
            first, last = first + len(batch), ids[-1]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged ({error}); write it again by: dvc repro -f clean") from None


def checked_messages(batch: pyarrow.RecordBatch, first: int, place: str) -> tuple[numpy.ndarray, list[str]]:
    """(C + 1,) offsets of a batch's conversations, and the content of each turn, users' at even places.

    Raises DataError at the first conversation that is not made of whole rounds.
    """
    messages = batch["messages"]
    turns = messages.flatten()
    offsets = numpy.asarray(messages.offsets, dtype=numpy.int64)
    offsets = offsets - offsets[0]
    roles, contents = turns.field("role").to_pylist(), turns.field("content").to_pylist()
    whole = messages.null_count == 0 and not (offsets % 2).any() and (numpy.diff(offsets) > 0).all()
    if whole and all(contents) and set(roles[::2]) <= {"user"} and set(roles[1::2]) <= {"assistant"}:
        return offsets, contents
    for index, (start, end) in enumerate(pairwise(offsets.tolist())):
        pairs = list(zip(roles[start:end], contents[start:end], strict=True))
        check_messages(pairs, f"{place} row {first + index}")
    raise DataError(f"{place} rows {first} to {first + len(batch)}: broken messages; run dvc repro clean")


class RowWriter:
    """Writes rows to a Parquet file in row groups of ROW_GROUP, whatever the size of the batches.

    Compression runs in `pool`, beside the caller.
    """

    def __init__(self, path: Path, pool: ThreadPoolExecutor) -> None:
        self.file = pyarrow.parquet.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=3)
        self.pool = pool
        self.waiting: list[pyarrow.Table] = []
        self.writing: Future | None = None

    def write(self, rows: pyarrow.Table) -> None:
        """Takes rows and writes whole row groups."""
        self.waiting.append(rows)
        count = sum(map(len, self.waiting))
        if count >= ROW_GROUP:
            table = pyarrow.concat_tables(self.waiting)
            end = count - count % ROW_GROUP
            self._send(table.slice(0, end))
            self.waiting = [table.slice(end)]

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # Writes what is left; after an error the file is thrown away by the caller.
        if self.waiting and kind is None:
            self._send(pyarrow.concat_tables(self.waiting))
        self._wait()
        self.file.close()

    def _send(self, table: pyarrow.Table) -> None:
        self._wait()
        self.writing = self.pool.submit(self.file.write_table, table, row_group_size=ROW_GROUP)

    def _wait(self) -> None:
        # At most one row group is on its way, which bounds the memory.
        if self.writing:
            self.writing.result()
            self.writing = None
