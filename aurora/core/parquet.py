"""Parquet files written whole or not at all, in bytes that depend on the table and on pyarrow alone."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import DataError
from aurora.core.files import replacing

if TYPE_CHECKING:
    import pyarrow


ROW_GROUP = 8192  # rows of a row group: bounds a reader's memory


class RowWriter:
    """Writes rows to a Parquet file in row groups of ROW_GROUP, whatever the size of the tables that come.

    Compression runs in `pool`, beside the caller; a row group at most is on its way. `options` are pyarrow's.
    `joined`: the bytes do not depend on where one table ends and the next begins.
    """

    def __init__(
        self, path: Path, schema: "pyarrow.Schema", pool: ThreadPoolExecutor, joined: bool = True, **options: object
    ) -> None:
        import pyarrow.parquet

        self.file = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd", **options)
        self.pool, self.joined = pool, joined
        self.waiting = schema.empty_table()
        self.writing: Future | None = None

    def write(self, rows: "pyarrow.Table") -> None:
        """Takes rows and writes whole row groups."""
        import pyarrow

        self.waiting = pyarrow.concat_tables([self.waiting, rows])
        whole = len(self.waiting) - len(self.waiting) % ROW_GROUP
        if whole:
            self._send(self.waiting.slice(0, whole))
            self.waiting = self.waiting.slice(whole)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # Writes what is left; after an error the file is thrown away by the caller.
        if kind is None and (len(self.waiting) or not self.writing):
            self._send(self.waiting)
        if self.writing:
            self.writing.result()
        self.file.close()

    def _send(self, table: "pyarrow.Table") -> None:
        if self.writing:
            self.writing.result()
        table = table.combine_chunks() if self.joined else table
        self.writing = self.pool.submit(self.file.write_table, table, row_group_size=ROW_GROUP)


def write_parquet(path: Path, tables: "pyarrow.Table | Iterable[pyarrow.Table]") -> None:
    """Writes one table, or several behind each other, as a Parquet file.

    Its bytes depend on the rows and the pyarrow version alone.
    """
    import pyarrow

    tables = iter([tables] if isinstance(tables, pyarrow.Table) else tables)
    first = next(tables)
    with (
        replacing(path) as partial,
        ThreadPoolExecutor(1) as pool,
        RowWriter(partial, first.schema, pool, compression_level=3) as writer,
    ):
        for table in chain([first], tables):
            writer.write(table)


def open_parquet(path: Path) -> "pyarrow.parquet.ParquetFile":
    """A Parquet file to be read piece by piece; what pyarrow reads ahead by default stays in memory to the end."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, pre_buffer=False)


def read_parquet(path: Path, producer: str, columns: list[str] | None = None) -> "pyarrow.Table":
    """Reads a Parquet file, or some of its columns; raises DataError if it or one of them is missing, or damaged."""
    import pyarrow
    import pyarrow.parquet

    if not Path(path).is_file():
        raise DataError(f"{path}: not found; it is written by: dvc repro {producer}")
    try:
        found = pyarrow.parquet.read_schema(path).names
        for name in columns or ():
            if name not in found:
                raise DataError(
                    f"{path}: column {name} is missing, found {', '.join(found)};"
                    f" write it again by: dvc repro -f {producer}"
                )
        return pyarrow.parquet.read_table(path, columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not Parquet ({error}); write it again by: dvc repro -f {producer}") from None
