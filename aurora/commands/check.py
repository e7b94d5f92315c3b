"""`aurora check`: what can be known to be wrong before anything runs."""

import sys
from pathlib import Path

import click

from aurora.core.declared import DVC_YAML, VERSIONS
from aurora.core.errors import exit_with_message
from aurora.core.params import PARAMS_FILE
from aurora.pipeline.params import load_params
from aurora.pipeline.reasons import open_repository
from aurora.pipeline.rooms import faults
from aurora.pipeline.versions import version_faults


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--trace", is_flag=True, help="Also run every stage with only what it declares, off to the side."
)
@exit_with_message
def check(files: tuple[Path, ...], trace: bool) -> None:
    """Check params.yaml, or the profiles FILES, against the schema, and dvc.yaml against the code.

    DVC runs no stage for a key that no stage reads, so that a misspelt section would go unnoticed there; and it
    watches no module that dvc.yaml does not name. With --trace every stage runs once more in a folder that holds what
    it declares alone: what it opens, leaves or connects to beyond that is an error, as are outputs whose bytes are not
    those of dvc.lock.
    """
    for file in files or (PARAMS_FILE,):
        params = load_params(file)
        click.echo(f"{file}: sound, {len(params.all_sources)} sources")
    if files:
        return
    found = [*faults(Path()), *version_faults(Path())]
    for line in found:
        click.echo(f"error: {line}", err=True)
    if found:
        sys.exit(1)
    click.echo(f"{DVC_YAML}: every module that a stage imports is among its deps, and no other")
    click.echo(f"{VERSIONS}: every library that shapes a stage's bytes is among its params, and no other")
    if trace:
        _trace()


def _trace() -> None:
    from aurora.pipeline.tracing import trace

    with open_repository() as repo:
        done = trace(repo)
    for line in done.faults:
        click.echo(f"error: {line}", err=True)
    if done.faults:
        sys.exit(1)
    click.echo(
        f"traced {done.stages} stages: each reads, writes and connects to what it declares, and nothing else"
    )
    click.echo(
        f"{done.outputs} outputs: the bytes of dvc.lock"
        + (f"; not compared, since dvc.lock is older: {', '.join(done.stale)}" if done.stale else "")
    )
