"""Parquet files written whole or not at all, in bytes that depend on the table and on pyarrow alone."""

from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import DataError
from aurora.core.files import replacing

if TYPE_CHECKING:
    import pyarrow


def write_parquet(path: Path, table: "pyarrow.Table") -> None:
    """Writes a Parquet file whose bytes depend on the table and the pyarrow version alone."""
    import pyarrow.parquet

    with replacing(path) as partial:
        # One row group per 8,192 rows bounds a reader's memory; zstd level is fixed for equal bytes.
        pyarrow.parquet.write_table(
            table, partial, compression="zstd", compression_level=3, row_group_size=8192
        )


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
        raise DataError(
            f"{path}: not Parquet ({error}); write it again by: dvc repro -f {producer}"
        ) from None
