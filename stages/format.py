"""format: conversations to token rows."""

from pathlib import Path

import click

from aurora.core.errors import exit_with_message
from aurora.core.files import replacing
from aurora.core.params import read_section
from aurora.format.format import format_rows
from aurora.format.params import Format
from aurora.format.preview import write_page


@click.command()
@click.option("--conversations", type=click.Path(path_type=Path), required=True, help="Parquet from clean.")
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True, help="Folder of the base.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for rows and metrics.")
@exit_with_message
def main(conversations: Path, tokenizer: Path, out: Path) -> None:
    """Writes train.parquet, held_out.parquet, lengths.csv, metrics.json and preview.html into OUT."""
    params = read_section("format", Format)
    with replacing(out) as partial:
        metrics = format_rows(conversations, tokenizer, partial, params)
        template = params.prompt == "chat_template"
        write_page(partial, tokenizer, partial / "preview.html", template)
    click.echo(
        f"format: {metrics['train_rows']:,} rows to train on and {metrics['held_out_rows']:,} held out, "
        f"{metrics['rounds_kept']:,} of {metrics['rounds']:,} rounds"
    )


if __name__ == "__main__":
    main()
