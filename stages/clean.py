"""clean: every instruction row kept, repaired, or dropped with a reason."""

import sys
from pathlib import Path

import click

from aurora.clean.clean import clean
from aurora.clean.clean_page import write_page
from aurora.clean.params import Clean
from aurora.clean.row_tables import write_dropped, write_tables
from aurora.core.errors import DataError, exit_with_message
from aurora.core.files import remove, replacing, write_json
from aurora.core.manifests import origin_of
from aurora.core.params import read_section
from aurora.sources.source import Download, LocalSource, Source


@click.command()
@click.option(
    "--instructions", type=click.Path(path_type=Path), required=True, help="Folder of the fetched sets."
)
@click.option(
    "--benchmarks", type=click.Path(path_type=Path), required=True, help="Folder of the benchmarks."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@exit_with_message
def main(instructions: Path, benchmarks: Path, out: Path) -> None:
    """Writes conversations.parquet, dropped.parquet, sources.json, metrics.json and report.html into OUT."""
    sources: dict[str, Source] = {
        **read_section("sources", dict[str, LocalSource]),
        **read_section("downloads", dict[str, Download]),
    }
    params = read_section("clean", Clean)
    folders = _folders(instructions, sources, "instructions")
    searched = _folders(benchmarks, sources, "benchmark")
    origins = [origin_of(folder) for folder in sorted([*folders.values(), *searched.values()])]
    cleaned = clean(folders, searched.values(), params, sources)
    if not cleaned.kept:
        out.mkdir(parents=True, exist_ok=True)
        write_dropped(out / "dropped.parquet", cleaned)
        why = [note for note in cleaned.metrics["notes"] if "no row is left" in note]
        raise DataError(
            f"clean: no row is left; {'; '.join(why)}; {out / 'dropped.parquet'} has every row's reason"
        )
    with replacing(out) as partial:
        partial.mkdir()
        write_tables(partial, cleaned, {name: source.repeat for name, source in sources.items()})
        write_json(partial / "sources.json", {"sources": origins})
        write_json(partial / "metrics.json", cleaned.metrics)
        write_page(partial / "report.html", cleaned)
    for note in cleaned.metrics["notes"]:
        print(f"clean: {note}", file=sys.stderr)
    print(f"clean: kept {len(cleaned.kept):,} of {cleaned.metrics['total']['read']:,}")


def _folders(parent: Path, sources: dict[str, Source], kind: str) -> dict[str, Path]:
    """Name -> folder of the sources of one kind; a folder that another profile left is removed and named."""
    names = [name for name, source in sources.items() if source.kind == kind]
    for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
        if folder.is_dir() and folder.name not in names and not folder.name.startswith("."):
            print(f"clean: removed {folder}, which params.yaml does not name", file=sys.stderr)
            remove(folder)
    return {name: parent / name for name in names}


if __name__ == "__main__":
    main()
