"""`aurora check`: what can be known to be wrong before anything runs."""

from pathlib import Path

import click

from aurora.errors import one_line
from aurora.params import PARAMS_FILE, load_params


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@one_line
def check(files: tuple[Path, ...]) -> None:
    """Check params.yaml, or the profiles FILES, against the schema.

    DVC runs no stage for a key that no stage reads; so a misspelt section would go unnoticed there.
    """
    for file in files or (PARAMS_FILE,):
        params = load_params(file)
        click.echo(f"{file}: sound, {len(params.sources)} sources")
