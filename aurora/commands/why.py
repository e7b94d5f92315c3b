"""`aurora why [STAGE]`: says why `dvc repro` would run a stage now."""

import click

from aurora.core.errors import exit_with_message
from aurora.pipeline.reasons import open_repository, reasons


@click.command()
@click.argument("stages", nargs=-1, metavar="[STAGE]...")
@exit_with_message
def why(stages: tuple[str, ...]) -> None:
    """Say why STAGE, or every stage, would run now: which parameter, version, file or module changed, from what to what."""
    with open_repository() as repo, repo.lock:
        found = reasons(repo, stages)
    for stage, lines in found.items():
        click.echo(f"{stage} would run:")
        for line in lines:
            click.echo(f"  {line}")
    if not found:
        click.echo(f"{', '.join(stages) or 'every stage'}: up to date")
