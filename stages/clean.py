"""clean: every instruction row kept, repaired, or dropped with a reason."""

import os
import sys
from pathlib import Path

import click

from aurora.clean.clean import clean, say_disk
from aurora.clean.params import Clean
from aurora.core.errors import DataError, exit_with_message
from aurora.core.files import remove, replacing, write_json
from aurora.core.manifests import origin_of
from aurora.core.params import read_section
from aurora.sources.source import Download, LocalSource, Source


@click.command()
@click.option("--instructions", type=click.Path(path_type=Path), required=True, help="Folder of the fetched sets.")
@click.option("--benchmarks", type=click.Path(path_type=Path), required=True, help="Folder of the benchmarks.")
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
    _folders(instructions.with_name("prompts"), sources, "prompts")  # eval reads all of them, and runs after clean
    origins = [origin_of(folder) for folder in sorted([*folders.values(), *searched.values()])]
    spill = out.with_name(f".{out.name}.rows")
    remove(spill)  # of a run that was killed
    with replacing(out) as partial:
        try:
            partial.mkdir()
            spill.mkdir()
            say_disk(folders.values(), spill)
            metrics = clean(folders, searched.values(), params, sources, partial, spill)
        finally:
            remove(spill)
        if not metrics["total"]["kept"]:
            out.mkdir(parents=True, exist_ok=True)
            os.replace(partial / "dropped.parquet", out / "dropped.parquet")
            why = [note for note in metrics["notes"] if "no row is left" in note]
            told = f"{out / 'dropped.parquet'} has every row's reason"
            raise DataError(f"clean: no row is left; {'; '.join(why)}; {told}")
        write_json(partial / "sources.json", {"sources": origins})
    for note in metrics["notes"]:
        print(f"clean: {note}", file=sys.stderr)
    print(f"clean: kept {metrics['total']['kept']:,} of {metrics['total']['read']:,}")


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
