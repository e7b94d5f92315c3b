"""`aurora check`: what can be known to be wrong before anything runs."""

import sys
from pathlib import Path

import click

from aurora.declarations import faults, version_faults
from aurora.errors import one_line
from aurora.params.section import PARAMS_FILE
from aurora.params.whole import load_params
from aurora.running import MAP, VERSIONS


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@one_line
def check(files: tuple[Path, ...]) -> None:
    """Check params.yaml, or the profiles FILES, against the schema, and dvc.yaml against the code.

    DVC runs no stage for a key that no stage reads, so that a misspelt section would go unnoticed there; and it
    watches no module that dvc.yaml does not name.
    """
    for file in files or (PARAMS_FILE,):
        params = load_params(file)
        click.echo(f"{file}: sound, {len(params.sources)} sources")
    if files:
        return
    found = [*faults(Path()), *version_faults(Path())]
    for line in found:
        click.echo(f"error: {line}", err=True)
    if found:
        sys.exit(1)
    click.echo(f"{MAP}: every module that a stage imports is among its deps, and no other")
    click.echo(f"{VERSIONS}: every library that shapes a stage's bytes is among its params, and no other")
