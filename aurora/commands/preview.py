"""`aurora preview [N]`: rows of the format stage in the terminal, the trained tokens coloured."""

from pathlib import Path

import click

from aurora.core.errors import DataError, exit_with_message
from aurora.core.parquet import read_parquet
from aurora.format.preview import terminal_row, vocabulary


@click.command()
@click.argument("count", type=click.IntRange(min=1), default=3, metavar="[N]")
@click.option("--source", help="Show rows of this source only.")
@click.option("--held-out", is_flag=True, help="Show held-out rows instead of training rows.")
@click.option("--rows", type=click.Path(path_type=Path), default="data/format", show_default=True)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    default="data/raw/model/base",
    show_default=True,
    help="Folder of the base.",
)
@exit_with_message
def preview(count: int, source: str | None, held_out: bool, rows: Path, tokenizer: Path) -> None:
    """Show N rows (3) of the format stage, trained tokens in green."""
    import pyarrow.compute

    file = rows / ("held_out.parquet" if held_out else "train.parquet")
    table = read_parquet(file, "format")
    if source is not None:
        table = table.filter(pyarrow.compute.equal(table["source"], source))
    if not len(table):
        raise DataError(f"{file}: no row of source {source!r}" if source else f"{file}: no rows")
    processor = vocabulary(tokenizer)
    for row in table.slice(0, count).to_pylist():
        click.echo(terminal_row(processor, row))
