"""`aurora check`: what can be known to be wrong before anything runs."""

import sys
from pathlib import Path

import click

from aurora.commands import completion
from aurora.core.declared import DVC_YAML, VERSIONS
from aurora.core.errors import exit_with_message
from aurora.core.params import PARAMS_FILE
from aurora.pipeline.params import load_params
from aurora.pipeline.reasons import frozen, open_repository
from aurora.pipeline.rooms import faults
from aurora.pipeline.versions import shadowing, version_faults

VERDICTS = {
    "namespaces": "in namespaces of their own: no other file, network (but for fetch), user, host name or process was there",
    "landlock": "under Landlock, as this kernel lets nobody have namespaces: no other file could be opened; that one is"
    " there, its time, and the host name were visible",
    "none": "without a sandbox, since this kernel offers none: what Python opened was watched, reads through C and"
    " through other programs were not",
}


@click.command()
@click.argument("names", nargs=-1, metavar="[FILE|STAGE]...", shell_complete=completion.stages)
@click.option(
    "--trace", is_flag=True, help="Also run every STAGE, or all, with only what it declares, off to the side."
)
@exit_with_message
def check(names: tuple[str, ...], trace: bool) -> None:
    """Check params.yaml, or the profiles FILE, against the schema, and dvc.yaml against the code.

    DVC runs no stage for a key that no stage reads, so that a misspelt section would go unnoticed there; and it
    watches no module that dvc.yaml does not name. With --trace each STAGE runs once more in a sandbox that holds what
    it declares alone: what it opens, leaves or connects to beyond that is an error, as are outputs whose bytes are not
    those of dvc.lock. What it reads of stages that are not named comes from DVC's cache.
    """
    for file in [PARAMS_FILE] if trace or not names else map(Path, names):
        params = load_params(file)
        click.echo(f"{file}: sound, {len(params.all_sources)} sources")
    if names and not trace:
        return
    found = [*faults(Path()), *version_faults(Path()), *shadowing(Path())]
    for line in found:
        click.echo(f"error: {line}", err=True)
    if found:
        sys.exit(1)
    click.echo(f"{DVC_YAML}: every module that a stage imports is among its deps, and no other")
    click.echo(f"{VERSIONS}: every library that shapes a stage's bytes is among its params, and no other")
    for stage in frozen(Path()):
        click.echo(
            f"note: {DVC_YAML}: {stage} is frozen, so that dvc repro never runs it: dvc unfreeze {stage}", err=True
        )
    if trace:
        _trace(names)


def _trace(names: tuple[str, ...]) -> None:
    from aurora.pipeline.tracing import trace

    with open_repository() as repo:
        done = trace(repo, names)
    for line in done.faults:
        click.echo(f"error: {line}", err=True)
    click.echo(f"traced {done.stages} stages {VERDICTS[done.kind]}", err=bool(done.faults))
    if done.faults:
        sys.exit(1)
    click.echo("each reads, writes and connects to what it declares, and nothing else")
    click.echo(
        f"{done.outputs} outputs: the bytes of dvc.lock"
        + (f"; not compared, since dvc.lock is older: {', '.join(done.stale)}" if done.stale else "")
    )
