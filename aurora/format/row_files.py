"""Conversations read in checked batches, and rows written in whole row groups."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from aurora.core.errors import DataError
from aurora.core.parquet import RowWriter, open_parquet
from aurora.prompt.mistral import check_messages

ROLES = pyarrow.array(["user", "assistant"])  # of the turns of a round
MESSAGES = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
TRAIN = pyarrow.schema(
    [
        ("id", pyarrow.string()),  # content id; .1, .2 … behind it on rows that continue a conversation
        ("source", pyarrow.string()),
        ("input_ids", pyarrow.list_(pyarrow.int32())),
        ("labels", pyarrow.list_(pyarrow.int32())),
    ]
)
# What eval asks and compares: the text of the row's first user turn, and of its answer.
HELD_OUT = pyarrow.schema([*TRAIN, ("prompt", pyarrow.string()), ("reply", pyarrow.string())])
OPTIONAL = {  # columns that clean writes where a row fills them
    "system": pyarrow.string(),
    "train": pyarrow.list_(pyarrow.bool_()),  # of each round
    "steps": pyarrow.list_(pyarrow.string()),  # of each round
    "tools": pyarrow.string(),
    "repeat": pyarrow.int32(),
}
BATCH = 1024  # conversations of a batch; bounds the memory


@contextmanager
def conversations_file(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """The file of the clean stage, open.

    Raises DataError if it is missing, lacks a column, or turns out to be damaged inside the block.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; it is written by: dvc repro clean")
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
            names = {"id", "source", "messages"}
            if not names <= set(schema.names) or not schema.field("messages").type.equals(MESSAGES):
                raise DataError(
                    f"{path}: columns are {schema.names}, not id, source, messages (of role, content); "
                    "run dvc repro clean"
                )
            for name, kind in OPTIONAL.items():
                if name in schema.names and not schema.field(name).type.equals(kind):
                    raise DataError(
                        f"{path}: column {name} is {schema.field(name).type}, not {kind}; run dvc repro clean"
                    )
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged ({error}); write it again by: dvc repro -f clean") from None


def read_keys(path: Path) -> tuple[list[str], list[str], list[bool] | None]:
    """The id of every conversation, the key of its cluster of near duplicates: its own id without one, and whether its
    first answer is to be trained; None where all are.

    Raises DataError as `conversations_file` does, and if the ids are not sorted and unique.
    """
    with conversations_file(path) as file:
        columns = [name for name in ("id", "cluster", "train") if name in file.schema_arrow.names]
        table = file.read(columns=columns)
    ids = table["id"].to_pylist()
    for row, (before, after) in enumerate(pairwise(["", *ids])):
        if not after or before >= after:
            raise DataError(
                f"{path} row {row}: id {after} does not come after {before or 'nothing'}, but ids are unique and "
                "sorted; set clean.exact_duplicates to true, or run dvc repro clean"
            )
    clusters = table["cluster"].to_pylist() if "cluster" in columns else ids
    if None in clusters:
        raise DataError(f"{path} row {clusters.index(None)}: its cluster is null; run dvc repro clean")
    first = [rounds[0] for rounds in table["train"].to_pylist()] if "train" in columns else None
    return ids, clusters, first


def read_batches(path: Path, size: int = BATCH) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
    """Batches of conversations, each with the number of its first row; raises as `conversations_file` does."""
    first = 0
    with conversations_file(path) as file:
        columns = ["id", "source", "messages", *(name for name in OPTIONAL if name in file.schema_arrow.names)]
        for batch in file.iter_batches(size, columns=columns):
            yield first, batch
            first += len(batch)


def checked_messages(batch: pyarrow.RecordBatch, first: int, place: str) -> tuple[numpy.ndarray, pyarrow.StringArray]:
    """(C + 1,) offsets of a batch's conversations, and the content of each turn, users' at even places.

    Raises DataError at the first conversation that is not made of whole rounds.
    """
    messages = batch["messages"]
    turns = messages.flatten()
    offsets = numpy.asarray(messages.offsets, dtype=numpy.int64)
    offsets = offsets - offsets[0]
    roles, contents = turns.field("role"), turns.field("content")
    alternating = ROLES.take(pyarrow.array(numpy.arange(len(roles)) % len(ROLES)))
    whole = messages.null_count == 0 and not (offsets % 2).any() and (numpy.diff(offsets) > 0).all()
    filled = contents.null_count == 0 and pyarrow.compute.all(pyarrow.compute.not_equal(contents, "")).as_py()
    if whole and filled and roles.equals(alternating):
        return offsets, contents
    texts = contents.to_pylist()
    for index, (start, end) in enumerate(pairwise(offsets.tolist())):
        pairs = list(zip(roles[start:end].to_pylist(), texts[start:end], strict=True))
        check_messages(pairs, f"{place} row {first + index}")
    raise DataError(f"{place} rows {first} to {first + len(batch)}: broken messages; run dvc repro clean")


def row_writer(path: Path, schema: pyarrow.Schema, pool: ThreadPoolExecutor) -> RowWriter:
    """Opens a file of token rows."""
    tokens = ("input_ids.list.element", "labels.list.element")
    return RowWriter(
        path,
        schema,
        pool,
        joined=False,  # a copy of each row group less
        compression_level=1,
        # Token ids in a dictionary take longer to write and more room than their bytes apart.
        use_dictionary=["source"],
        column_encoding=dict.fromkeys(tokens, "BYTE_STREAM_SPLIT"),
        write_statistics=["id", "source"],
    )
