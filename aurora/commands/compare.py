"""`aurora compare A B`: two evaluations question by question."""

from collections.abc import Iterator
from pathlib import Path

import click

from aurora.commands.revisions import is_revision, read_revision, stage_folders
from aurora.core.errors import DataError, exit_with_message
from aurora.report.comparison import Difference, compare_questions, questions_of, read_questions


def read_place(place: str, model: str = "tuned") -> dict[tuple, tuple[str, str]]:
    """Prediction and target of each question, by (task, subject, id).

    `place` is a folder of the eval stage; or `base` or `tuned`, the folder of that instance of the stage in dvc.yaml;
    or a git revision, whose evaluation of `model` is read from DVC's cache; or REVISION:FOLDER.
    Raises DataError if there is no such folder or file, or a question stands there twice.
    """
    folder = Path(place)
    if not folder.is_dir() and place in (instances := stage_folders()):
        folder = Path(instances[place])
        if not folder.is_dir():
            raise DataError(f"{folder}: not found; it is written by: dvc repro eval@{place}")
    if folder.is_dir():
        return read_questions(folder)
    revision, _, path = place.partition(":")
    path = path or stage_folders().get(model)
    if path is None or not is_revision(revision):
        raise DataError(
            f"{place}: no such folder, and no instance of eval or revision of git; "
            "give a folder of eval, base, tuned, a revision, or REVISION:FOLDER"
        )
    return questions_of(read_revision(revision, path), place)


def table_lines(differences: list[Difference]) -> Iterator[str]:
    """A line for each difference, in points of a hundred."""
    width = max(len(item.name) for item in differences)
    yield f"{'':{width}}  {'n':>6}  {'A':>6}  {'B':>6}  {'B - A':>6}  {'95 % interval':>18}  gained  lost"
    for item in differences:
        interval = f"{100 * item.low:+.2f} to {100 * item.high:+.2f}"
        yield (
            f"{item.name:{width}}  {item.count:6,}  {100 * item.before:6.2f}  {100 * item.after:6.2f}  "
            f"{100 * (item.after - item.before):+6.2f}  {interval:>18}  {item.gained:6,}  {item.lost:4,}  "
            f"{'within chance' if item.by_chance else 'beyond chance'}"
        )


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--model", default="tuned", show_default=True, help="Whose evaluation of a git revision: base or tuned.")
@click.option("--subjects", is_flag=True, help="All subjects, not only those beyond chance.")
@click.option("--flipped", is_flag=True, help="Each question that changed between right and wrong.")
@exit_with_message
def compare(a: str, b: str, model: str, subjects: bool, flipped: bool) -> None:
    """Compare two evaluations question by question.

    A and B are each one of: base or tuned, of the workspace; a git revision (main, HEAD~1, a tag), whose
    evaluation of the tuned model DVC has kept; a folder of the eval stage; REVISION:FOLDER. A difference whose 95 %
    interval holds zero is within chance.
    """
    benchmarks, by_subject, changed = compare_questions(read_place(a, model), read_place(b, model))
    click.echo("\n".join(table_lines(benchmarks)))
    beyond = [item for item in by_subject if not item.by_chance]
    shown = by_subject if subjects else beyond
    if shown:
        click.echo("\n" + "\n".join(table_lines(shown)))
    if flipped:
        click.echo("\ntask subject id  A -> B  target")
        for task, subject, position, one, other, target in changed:
            click.echo(f"{task} {subject} {position}  {one} -> {other}  {target}")
    click.echo(
        f"\ncompare: {len(beyond)} of {len(by_subject)} subjects beyond chance (about one in twenty would be "
        f"if nothing had changed); {len(changed)} of {sum(item.count for item in benchmarks):,} questions flipped"
    )
