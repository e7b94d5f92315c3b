"""merge: the adapter added to the base, as a standard Hugging Face folder."""

from pathlib import Path

import click

from aurora.errors import one_line
from aurora.merging import merge
from aurora.store import replacing, write_json


@click.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Base model folder.")
@click.option("--adapter", type=click.Path(path_type=Path), required=True, help="PEFT folder of sft.")
@click.option("--merged", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of metrics.")
@one_line
def main(base: Path, adapter: Path, merged: Path, out: Path) -> None:
    """Merge the adapter into the base."""
    metrics = merge(base, adapter, merged)
    with replacing(out) as partial:
        partial.mkdir()
        write_json(partial / "metrics.json", metrics)
    print(f"merge: {metrics['tensors_changed']} of {metrics['tensors']} tensors changed")


if __name__ == "__main__":
    main()
