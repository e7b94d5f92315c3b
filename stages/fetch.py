"""fetch: one source of params.yaml to data/raw, its bytes verified and listed in a manifest."""

import signal
from pathlib import Path

import click

from aurora.core.declared import require_versions
from aurora.core.errors import exit_with_message
from aurora.core.params import read_section
from aurora.fetch.fetch import fetch
from aurora.sources.source import SECTIONS


@click.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--section", type=click.Choice(list(SECTIONS)), required=True, help="Section of params.yaml.")
@exit_with_message
def main(name: str, out: Path, section: str) -> None:
    """Fetch the source NAME of a section of params.yaml."""
    source = read_section(f"{section}.{name}", SECTIONS[section])
    if source.builder:
        require_versions(Path(source.builder))
    manifest = fetch(name, source, out, section)
    size = sum(file["bytes"] for file in manifest["files"])
    count = len(manifest["files"])
    print(f"fetch {name}: {count:,} file{'s' * (count > 1)}, {size:,} bytes")


if __name__ == "__main__":
    # Else an interrupt would wait for the files that threads of the download library are at, for minutes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
