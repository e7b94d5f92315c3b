"""Two evaluations question by question: what changed, and whether chance alone would explain it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy

from aurora.errors import DataError, one_line
from aurora.eval.revisions import is_revision, read_revision, stage_folders
from aurora.tables import read_parquet

KEY = ("task", "subject", "id")
COLUMNS = (*KEY, "prediction", "target")
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of B minus accuracy of A on the same questions, with its interval."""

    name: str
    count: int
    before: float  # accuracy of A
    after: float  # accuracy of B
    gained: int  # questions that only B answers rightly
    lost: int  # questions that only A answers rightly
    low: float
    high: float

    @property
    def by_chance(self) -> bool:
        """Whether the interval holds zero, so that the difference may be chance."""
        return self.low <= 0 <= self.high


def difference(name: str, before: numpy.ndarray, after: numpy.ndarray) -> Difference:
    """Compares two (N,) boolean arrays of right answers to the same questions.

    The interval is McNemar's, exact: of the questions on which the two differ, the share that B wins has a
    Clopper-Pearson interval at 95 %, which is scaled by their number. It holds zero just when the exact McNemar
    test does not reject at 5 %, on a handful of questions as well as on thousands.
    """
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    low, high = clopper_pearson(gained, gained + lost)
    scale = (gained + lost) / len(before)
    return Difference(
        name,
        len(before),
        float(before.mean()),
        float(after.mean()),
        gained,
        lost,
        scale * (2 * low - 1) + 0.0,  # no negative zero
        scale * (2 * high - 1) + 0.0,
    )


def clopper_pearson(wins: int, trials: int) -> tuple[float, float]:
    """Exact interval at 95 % for the chance of a win; (0, 1) without a trial."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if wins == 0 else _solve(lambda chance: at_least(wins, trials, chance) - tail)
    high = 1.0 if wins == trials else _solve(lambda chance: tail - (1 - at_least(wins + 1, trials, chance)))
    return low, high


def at_least(wins: int, trials: int, chance: float) -> float:
    """Probability of `wins` or more in `trials`."""
    if wins <= 0:
        return 1.0
    counts = range(wins, trials + 1)
    whole = math.lgamma(trials + 1)
    logs = [
        whole
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(chance)
        + (trials - count) * math.log1p(-chance)
        for count in counts
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def _solve(rising: Callable[[float], float]) -> float:
    # The zero of a function that rises on (0, 1), by bisection to the last bits that matter.
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def read_questions(place: str, model: str = "tuned") -> dict[tuple, tuple[str, str]]:
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
        table = read_parquet(folder / "questions.parquet", "eval")
    else:
        revision, _, path = place.partition(":")
        path = path or stage_folders().get(model)
        if path is None or not is_revision(revision):
            raise DataError(
                f"{place}: no such folder, and no instance of eval or revision of git; "
                "give a folder of eval, base, tuned, a revision, or REVISION:FOLDER"
            )
        table = read_revision(revision, path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{place}: questions.parquet has no column '{missing[0]}'; run dvc repro -f eval")
    rows = zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)
    questions = {row[:3]: row[3:] for row in rows}
    if len(questions) < len(table):
        raise DataError(f"{place}: a question stands there twice; run dvc repro -f eval")
    return questions


def compare_questions(before: dict, after: dict) -> tuple[list[Difference], list[Difference], list[tuple]]:
    """Differences by benchmark, by subject, and the questions whose answer changed between right and wrong.

    Raises DataError if the two did not answer the same questions.
    """
    if before.keys() != after.keys():
        alone = len(before.keys() - after.keys()), len(after.keys() - before.keys())
        raise DataError(
            f"the two did not answer the same questions ({alone[0]} only in A, {alone[1]} only in B); "
            "evaluate both with equal eval.tasks"
        )
    keys = sorted(before)
    if not keys:
        raise DataError("there is no question in either; run dvc repro eval")
    for key in keys:
        if before[key][1] != after[key][1]:
            raise DataError(
                f"{' '.join(map(str, key))}: the right answer is {before[key][1]} in A and "
                f"{after[key][1]} in B; evaluate both with the same benchmark files"
            )
    right = [
        numpy.array([prediction == target for prediction, target in map(side.__getitem__, keys)])
        for side in (before, after)
    ]
    flipped = [
        (*key, before[key][0], after[key][0], before[key][1])
        for key, one, other in zip(keys, *right, strict=True)
        if one != other
    ]
    tasks = numpy.array([key[0] for key in keys])
    subjects = numpy.array([f"{key[0]} {key[1]}" for key in keys])
    return (
        [difference(str(name), *(side[tasks == name] for side in right)) for name in numpy.unique(tasks)],
        [
            difference(str(name), *(side[subjects == name] for side in right))
            for name in numpy.unique(subjects)
        ],
        flipped,
    )


def table_lines(differences: list[Difference]) -> Iterator[str]:
    """A line for each difference, in points of a hundred."""
    width = max(len(item.name) for item in differences)
    yield f"{'':{width}}  {'n':>6}  {'A':>6}  {'B':>6}  {'B - A':>6}  {'95 % interval':>16}  gained  lost"
    for item in differences:
        interval = f"{100 * item.low:+.1f} to {100 * item.high:+.1f}"
        yield (
            f"{item.name:{width}}  {item.count:6,}  {100 * item.before:6.2f}  {100 * item.after:6.2f}  "
            f"{100 * (item.after - item.before):+6.2f}  {interval:>16}  {item.gained:6,}  {item.lost:4,}  "
            f"{'within chance' if item.by_chance else 'beyond chance'}"
        )


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--model", default="tuned", show_default=True, help="Whose evaluation of a git revision: base or tuned."
)
@click.option("--subjects", is_flag=True, help="All subjects, not only those beyond chance.")
@click.option("--flipped", is_flag=True, help="Each question that changed between right and wrong.")
@one_line
def compare(a: str, b: str, model: str, subjects: bool, flipped: bool) -> None:
    """Compare two evaluations question by question.

    A and B are each one of: base or tuned, as they lie in the workspace; a git revision (main, HEAD~1, a tag), whose
    evaluation of the tuned model DVC has kept; a folder of the eval stage; REVISION:FOLDER. A difference whose 95 %
    interval holds zero is within chance.
    """
    benchmarks, by_subject, changed = compare_questions(read_questions(a, model), read_questions(b, model))
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
