"""Two evaluations question by question: what changed, and whether chance alone explains it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from aurora.core.errors import DataError
from aurora.core.parquet import read_parquet

if TYPE_CHECKING:
    import pyarrow

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

    The interval is McNemar's, exact: the share that B wins of the questions on which the two differ has a
    Clopper-Pearson interval at 95 %, scaled by the number of these questions. It holds zero exactly when the exact
    McNemar test does not reject at 5 %.
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
    from scipy.stats import binomtest  # takes half a second to import

    if not trials:
        return 0.0, 1.0
    low, high = binomtest(wins, trials).proportion_ci(LEVEL, method="exact")
    return float(low), float(high)


def read_questions(folder: Path) -> dict[tuple, tuple[str, str]]:
    """Prediction and target of each question in a folder of the eval stage, by (task, subject, id)."""
    return questions_of(read_parquet(folder / "questions.parquet", "eval"), folder)


def questions_of(table: "pyarrow.Table", place: object) -> dict[tuple, tuple[str, str]]:
    """Prediction and target of each question, by (task, subject, id); errors name `place`.

    Raises DataError for a table that lacks a column or holds a question twice.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{place}: questions.parquet has no column '{missing[0]}'; run dvc repro -f eval")
    rows = zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)
    questions = {row[:3]: row[3:] for row in rows}
    if len(questions) < len(table):
        raise DataError(f"{place}: a question stands there twice; run dvc repro -f eval")
    return questions


def read_categories(folder: Path) -> dict[tuple[str, str], str]:
    """The category of each subject, by (task, subject), in a folder of the eval stage; those without one are left out."""
    table = read_parquet(folder / "questions.parquet", "eval")
    if "category" not in table.column_names:
        raise DataError(f"{folder}: questions.parquet has no column 'category'; run dvc repro -f eval")
    rows = zip(*(table[name].to_pylist() for name in ("task", "subject", "category")), strict=True)
    return {(task, subject): category for task, subject, category in rows if category}


def ledger(
    before: dict, after: dict, languages: Mapping[str, str], categories: Mapping[tuple[str, str], str]
) -> list[Difference]:
    """What B gained and lost against A, paired by question: by language, by benchmark and by category.

    `languages` gives the language of each benchmark. Raises DataError as `compare_questions` does.
    """
    by_task = compare_questions(before, after)[0]
    groups: dict[str, list[tuple]] = {}
    for key in sorted(before):
        task, subject, _ = key
        for name in (languages.get(task), categories.get((task, subject))):
            if name:
                groups.setdefault(name, []).append(key)
    found = {name: difference(name, *(_right(side, keys) for side in (before, after))) for name, keys in groups.items()}
    spoken = [found.pop(name) for name in dict.fromkeys(languages.values()) if name in found]
    return [*spoken, *by_task, *(found[name] for name in sorted(found))]


def _right(side: dict, keys: list[tuple]) -> numpy.ndarray:
    return numpy.array([side[key][0] == side[key][1] for key in keys])


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
    right = [_right(side, keys) for side in (before, after)]
    flipped = [
        (*key, before[key][0], after[key][0], before[key][1])
        for key, one, other in zip(keys, *right, strict=True)
        if one != other
    ]
    tasks = numpy.array([key[0] for key in keys])
    subjects = numpy.array([f"{key[0]} {key[1]}" for key in keys])
    return (
        [difference(str(name), *(side[tasks == name] for side in right)) for name in numpy.unique(tasks)],
        [difference(str(name), *(side[subjects == name] for side in right)) for name in numpy.unique(subjects)],
        flipped,
    )
