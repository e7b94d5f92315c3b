"""`aurora why [STAGE]`: says why `dvc repro` would run a stage now."""

from pathlib import Path

import click

from aurora.commands import completion
from aurora.core.errors import exit_with_message
from aurora.pipeline.reasons import NOTHING_HERE, beyond_missing, frozen, open_repository, reasons


@click.command()
@click.argument("stages", nargs=-1, metavar="[STAGE]...", shell_complete=completion.stages)
@exit_with_message
def why(stages: tuple[str, ...]) -> None:
    """Say why STAGE, or every stage, would run now: which parameter, version, file or module changed, from what to what."""
    with open_repository() as repo, repo.lock:
        found = reasons(repo, stages)
        others = beyond_missing(repo, found)
    if others is not None:
        click.echo(NOTHING_HERE)
        found = others
    for stage, lines in found.items():
        click.echo(f"{stage} would run:")
        for line in lines:
            click.echo(f"  {line}")
    for stage in frozen(Path()):
        click.echo(f"note: {stage} is frozen, so that dvc repro never runs it: dvc unfreeze {stage}", err=True)
    if not found and others is None:
        click.echo(f"{', '.join(stages) or 'every stage'}: up to date")
