"""fetch: one source of params.yaml to data/raw, its bytes verified and listed in a manifest."""

from pathlib import Path

import click

from aurora.core.declared import require_versions
from aurora.core.errors import ParamsError, exit_with_message
from aurora.core.params import read_section
from aurora.fetch.fetch import fetch
from aurora.sources.source import Source


@click.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--section",
    type=click.Choice(["sources", "hub_sources"]),
    default="sources",
    help="Section of params.yaml that has it.",
)
@exit_with_message
def main(name: str, out: Path, section: str) -> None:
    """Fetch the source NAME of params.yaml."""
    source = read_section(f"{section}.{name}", Source)
    if section == "hub_sources" and source.unfit_for_hub_sources:
        raise ParamsError(f"params.yaml: hub_sources.{name} {source.unfit_for_hub_sources}")
    if source.dep.startswith("aurora/"):
        require_versions(Path(source.dep))
    manifest = fetch(name, source, out, section)
    size = sum(file["bytes"] for file in manifest["files"])
    count = len(manifest["files"])
    print(f"fetch {name}: {count:,} file{'s' * (count > 1)}, {size:,} bytes")


if __name__ == "__main__":
    main()
