"""`aurora verify`: every output, and every object of DVC's cache and remote, held against dvc.lock."""

import sys

import click

from aurora.core.errors import exit_with_message
from aurora.pipeline.integrity import verify as verify_all
from aurora.pipeline.reasons import open_repository


@click.command()
@click.option(
    "--remote",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[NAME]",
    help="Read the objects of the default remote too, or of the one named.",
)
@exit_with_message
def verify(remote: str | None) -> None:
    """Read every byte that dvc.lock records, and list what is damaged, each with its remedy.

    DVC takes a file whose size and time are the same for the same file; a flipped bit shows here.
    """
    with open_repository() as repo:
        found = verify_all(repo, remote)
    for line in found.faults:
        click.echo(f"error: {line}", err=True)
    for what, names in (("not in the work tree", found.absent), ("not in the cache", found.uncached)):
        if names:
            click.echo(f"{what}: {', '.join(names)}; to bring them: dvc pull")
    objects = f", {found.objects:,} objects of the remote" if remote is not None else ""
    click.echo(f"verified {found.files:,} files, {found.bytes / 2**30:.2f} GiB{objects}: {len(found.faults)} faults")
    sys.exit(bool(found.faults))
