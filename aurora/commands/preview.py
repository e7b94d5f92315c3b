"""`aurora preview`: rows of the format stage, or of a raw file, in the terminal, the trained tokens coloured."""

from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path

import click

from aurora.commands import completion
from aurora.core.errors import DataError, exit_with_message
from aurora.core.params import read_section
from aurora.core.parquet import read_parquet
from aurora.format.preview import printable, terminal_row, vocabulary

LOOKED_AT = 2000  # rows of a raw file


@click.command()
@click.argument("what", default="3", metavar="[N|PATH]")
@click.option("--source", shell_complete=completion.sources, help="Show rows of this source only.")
@click.option("--held-out", is_flag=True, help="Show held-out rows instead of training rows.")
@click.option("--rows", type=click.Path(path_type=Path), default="data/format", show_default=True)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    default="data/raw/model/base",
    show_default=True,
    help="Folder of the base.",
)
@click.option("--format", "format_", default="auto", show_default=True, help="Layout of the rows of PATH.")
@exit_with_message
def preview(what: str, source: str | None, held_out: bool, rows: Path, tokenizer: Path, format_: str) -> None:
    """Show N rows (3) of the format stage, trained tokens in green; or what would become of the raw data at PATH, a
    file, a folder or a glob in quotes, and its entry for params.yaml."""
    import pyarrow.compute

    if not what.isdecimal():
        preview_raw(Path(what), format_, tokenizer)
        return
    file = rows / ("held_out.parquet" if held_out else "train.parquet")
    table = read_parquet(file, "format")
    if source is not None:
        names = sorted(table["source"].unique().to_pylist())
        if source not in names:
            near = get_close_matches(source, names, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
            raise DataError(f"{file}: no row of source {source!r}; {remedy}")
        table = table.filter(pyarrow.compute.equal(table["source"], source))
    if not len(table):
        raise DataError(f"{file}: no rows")
    processor = vocabulary(tokenizer)
    for row in table.slice(0, max(1, int(what))).to_pylist():
        click.echo(terminal_row(processor, row))


def preview_raw(path: Path, format_: str, tokenizer: Path) -> None:
    """Prints the layout of raw data, what clean would drop of its first rows, three rows, and the entry to paste."""
    from aurora.clean.clean import clean_chunk, rules_of
    from aurora.clean.layouts import LAYOUTS, advice, column
    from aurora.clean.params import Clean
    from aurora.clean.read_files import data_files, read_items

    pattern = None
    if "*" in str(path) and not path.exists():  # a glob of shards, as a folder and its files
        place = Path(str(path).partition("*")[0] + "*").parent
        path, pattern = place, path.relative_to(place).as_posix()
    if not path.exists():
        raise DataError(f"{path}: not found; give a number of rows, or the path of a file or folder")
    if format_ not in ("auto", *LAYOUTS):
        raise DataError(f"--format {format_}: not one of auto, {', '.join(LAYOUTS)}")
    files = [path]
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        names = [file.relative_to(path).as_posix() for file in inside]
        files = [path / name for name in data_files(names, pattern)]
    if not files:
        raise DataError(f"{path / (pattern or '')}: no file with rows")
    items = list(islice(chain.from_iterable(map(read_items, files)), LOOKED_AT))
    name = "".join(sign if sign.isalnum() and sign.isascii() else "_" for sign in path.name.split(".")[0].lower())
    name = name.strip("_") or "own"
    params = read_section("clean", Clean)
    rules = rules_of(name, format_, items, params, None)
    outcomes, ignored = clean_chunk(rules, 0, items)
    kept = [outcome.kept for outcome in outcomes if outcome.kept]
    layout = rules.layout
    parts = {"prompt": layout.prompt, "answer": layout.answer, "turns": layout.turns}
    there = {column(key) for item in items if isinstance(item, dict) for key in item}
    found = {part: [name for name in names if name in there] for part, names in parts.items()}
    columns = "; ".join(f"{part} in {' and '.join(names)}" for part, names in found.items() if names)
    click.echo(f"{path}: {layout.name}, {columns}")
    if ignored:
        click.echo(f"not read: {', '.join(f'{printable(key)} ({count:,})' for key, count in ignored.most_common(12))}")
    if rules.unmarked:
        click.echo("answers end without a mark by habit; truncated_answers looks for certain signs alone")
    click.echo(
        f"kept {len(kept):,} of the first {len(items):,} rows; duplicates and benchmark questions are looked for by clean"
    )
    _echo_reasons(outcomes)
    if not kept:
        raise DataError(f"{path}: no row is left; {advice(items, layout)}")
    click.echo()
    _echo_rows(kept[:3], tokenizer)
    click.echo("# for sources in params.yaml; write the licence")
    chosen = f"    files: '{pattern}'\n" if pattern else ""
    click.echo(f"  {name}:\n    kind: instructions\n    uri: {path}\n{chosen}    format: {layout.name}\n    licence:")


def _echo_reasons(outcomes: list) -> None:
    reasons: dict[str, list] = {}
    for outcome in outcomes:
        if outcome.drop:
            reasons.setdefault(outcome.drop.reason, []).append(outcome)
    for reason, of_reason in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        first = of_reason[0]
        evidence = printable(" ".join(first.drop.evidence.split())[:100])
        click.echo(f"  {reason} {len(of_reason):,}: row {first.position}: {evidence}")


def _echo_rows(kept: list, tokenizer: Path) -> None:
    """Rows in the tokens of the base, where it is fetched; else their text, the answers in green."""
    if not any((tokenizer / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        click.echo(f"{tokenizer}: no tokeniser; rows as text: dvc repro fetch@base shows tokens")
        for row in kept:
            if row.system:
                click.echo(click.style(printable(row.system), dim=True))
            for each in row.rounds:
                click.echo(click.style(printable(each.prompt), dim=True))
                click.echo(click.style(printable(each.answer), fg="green" if each.train else None) + "\n")
        return
    import tempfile

    import numpy
    import pyarrow

    from aurora.clean.row_store import conversation_columns
    from aurora.core.parquet import write_parquet
    from aurora.format.batch import Formatter
    from aurora.format.params import Format
    from aurora.format.prompt_formats import open_prompt_format
    from aurora.format.row_files import read_batches
    from aurora.format.split import Split

    params = read_section("format", Format)
    formatter = Formatter(open_prompt_format(tokenizer, params.prompt), params)
    nowhere = Split(*[numpy.zeros(len(kept), dtype=bool)] * 2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "conversations.parquet"
        write_parquet(file, pyarrow.table(conversation_columns(kept)))
        found = [formatter.batch(batch, nowhere, first, "row").train for first, batch in read_batches(file)]
    processor = vocabulary(tokenizer, params.prompt == "chat_template")
    for row in (row for table in found for row in table.to_pylist()):
        click.echo(terminal_row(processor, row))
