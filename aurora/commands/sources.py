"""`aurora sources`: what each source is, what pins it, under which licence, and whether it is here."""

from pathlib import Path

import click

from aurora.clean.read_files import data_files, read_items
from aurora.core.errors import AuroraError, DataError, exit_with_message
from aurora.core.files import git_blob_id
from aurora.core.manifests import MANIFEST, is_whole, read_manifest
from aurora.core.params import PARAMS_FILE
from aurora.fetch.fetch import pins_of
from aurora.fetch.previous import fits
from aurora.pipeline.params import Params, load_params
from aurora.pipeline.rooms import read_stages
from aurora.sources.source import Source
from aurora.sources.uris import non_commercial

HEADINGS = ("name", "kind", "pin", "licence", "rows", "bytes", "fetched")
NUMBERS = ("rows", "bytes")


@click.command()
@click.argument("params", type=click.Path(path_type=Path), default=PARAMS_FILE)
@exit_with_message
def sources(params: Path) -> None:
    """Show every source of PARAMS (params.yaml, or a profile): its pin, licence, size, and whether it is here."""
    print(table(rows(load_params(params), folder_pattern())))


def folder_pattern(root: Path = Path()) -> str:
    """Where dvc.yaml says that a source goes, with {kind} and {name} in their places. Raises AuroraError."""
    try:
        (out,) = read_stages(root)["fetch"]["outs"]
        return out.replace("${item.kind}", "{kind}").replace("${key}", "{name}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"dvc.yaml: no stage fetch with one output ({type(error).__name__}); restore it by: git checkout dvc.yaml"
        ) from None


def rows(params: Params, pattern: str) -> list[tuple[str, ...]]:
    """One row of HEADINGS for each source, in the order of params.yaml.

    rows and bytes are those on disk (questions of a benchmark in all its splits), else what params.yaml expects.
    fetched is yes where the manifest is of this uri, kind, format, licence and pins and its files have their sizes; else
    no, another uri, stale (run dvc repro), damaged, or why its rows cannot be read.
    """
    return [
        _row(name, source, Path(pattern.format(kind=source.kind, name=name)))
        for name, source in params.all_sources.items()
    ]


def _row(name: str, source: Source, folder: Path) -> tuple[str, ...]:
    licence = source.licence + (" (non-commercial)" if non_commercial(source.licence) else "")
    count, size, state = source.rows, source.bytes, "no"
    if (folder / MANIFEST).is_file():
        manifest, state = _read(source, folder)
        if state == "yes":
            size = sum(file["bytes"] for file in manifest["files"])
            try:
                count = _rows_on_disk(source, folder, manifest)
            except (AuroraError, OSError) as error:
                count, state = None, f"unreadable: {' '.join(str(error).split())}"
    return name, source.kind, source.pinned_by, licence, _count(count), _count(size), state


def _read(source: Source, folder: Path) -> tuple[dict, str]:
    try:
        manifest = read_manifest(folder)
    except DataError:
        return {}, "damaged"
    return manifest, _state(source, folder, manifest) if is_whole(manifest) else "stale"  # of another form


def _state(source: Source, folder: Path, manifest: dict) -> str:
    """Whether what is here is what params.yaml names now: yes, or what is not so."""
    if manifest["uri"] != source.uri:
        return "another uri"
    given = (source.kind, source.format, source.licence, source.rows, source.pinned_by)
    if given != tuple(manifest[key] for key in ("kind", "format", "licence", "rows", "pin")):
        return "stale"
    if any(_size(folder / file["path"]) != file["bytes"] for file in manifest["files"]):
        return "damaged"
    return "yes" if _fits(source, folder, manifest) else "stale"


def _fits(source: Source, folder: Path, manifest: dict) -> bool:
    """Whether the pins are those of the fetched file, by its manifest; a git blob id may be computed anew."""
    if source.git_blob and manifest["archive"] is None and "git_blob" not in manifest["files"][0]:
        return git_blob_id(folder / manifest["files"][0]["path"]) == source.git_blob
    return fits(manifest, pins_of(source))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _rows_on_disk(source: Source, folder: Path, manifest: dict) -> int | None:
    if source.kind == "instructions":
        paths = data_files([file["path"] for file in manifest["files"]], source.files)
        return sum(1 for path in paths for _ in read_items(folder / path))
    if source.kind == "benchmark":
        from aurora.clean.contamination import read_questions  # heavy: near-duplicate search

        return len(read_questions(folder))
    return None


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def table(body: list[tuple[str, ...]]) -> str:
    """Text in columns, numbers to the right."""
    widths = [max(len(line[column]) for line in (HEADINGS, *body)) for column in range(len(HEADINGS))]
    lines = []
    for line in (HEADINGS, *body):
        cells = [
            cell.rjust(width) if heading in NUMBERS else cell.ljust(width)
            for heading, cell, width in zip(HEADINGS, line, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
