"""Paired comparison of two evaluations."""

import subprocess
import sys
from pathlib import Path

import numpy
import pyarrow
import pytest
from click.testing import CliRunner

from aurora.commands.compare import compare
from aurora.core.parquet import write_parquet
from aurora.report.comparison import clopper_pearson, difference

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(
    ("wins", "trials"), [(0, 1), (1, 1), (3, 3), (8, 10), (5, 10), (0, 40), (700, 1300), (9, 5000)]
)
def test_interval_is_scipys(wins: int, trials: int) -> None:
    found = stats.binomtest(wins, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(wins, trials) == pytest.approx((found.low, found.high), abs=1e-9)


def test_interval_without_a_trial_is_everything() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (6, 0), (0, 6), (12, 4), (13, 4), (60, 40), (70, 40)])
def test_verdict_is_mcnemars(gained: int, lost: int) -> None:
    before = numpy.array([False] * gained + [True] * lost + [True] * 30 + [False] * 20)
    after = numpy.array([True] * gained + [False] * lost + [True] * 30 + [False] * 20)
    found = difference("x", before, after)
    chance = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.by_chance == (chance > 0.05)
    assert (found.gained, found.lost, found.count) == (gained, lost, len(before))
    assert found.low - 1e-12 <= found.after - found.before <= found.high + 1e-12


def questions(folder: Path, answers: str, targets: str = "ABCDABCD") -> Path:
    """Eight questions of two benchmarks."""
    write_parquet(
        folder / "questions.parquet",
        pyarrow.table(
            {
                "task": ["ceval"] * 4 + ["mmlu"] * 4,
                "subject": ["law"] * 4 + ["anatomy", "anatomy", "virology", "virology"],
                "id": [0, 1, 2, 3, 0, 1, 0, 1],
                "prediction": list(answers),
                "target": list(targets),
            }
        ),
    )
    return folder


def run(*arguments: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(compare, [str(argument) for argument in arguments])
    return found.exit_code, found.stdout, found.stderr


def test_report(tmp_path: Path) -> None:
    one, other = questions(tmp_path / "a", "ABCDAAAA"), questions(tmp_path / "b", "ABCAABCA")
    code, text, _ = run(one, other, "--subjects", "--flipped")
    assert code == 0
    lines = [line.split() for line in text.splitlines()]
    assert ["ceval", "4", "100.00", "75.00", "-25.00", "-25.00", "to", "+23.75", "0", "1", "within", "chance"] in lines
    assert [
        "mmlu",
        "virology",
        "2",
        "0.00",
        "50.00",
        "+50.00",
        "-47.50",
        "to",
        "+50.00",
        "1",
        "0",
        "within",
        "chance",
    ] in lines
    assert ["mmlu", "virology", "0", "A", "->", "C", "C"] in lines
    assert ["ceval", "law", "3", "D", "->", "A", "D"] in lines
    assert text.splitlines()[-1].endswith("3 of 8 questions flipped")


def test_equal_runs_differ_nowhere(tmp_path: Path) -> None:
    one, other = questions(tmp_path / "a", "ABCDAAAA"), questions(tmp_path / "b", "ABCDAAAA")
    code, text, _ = run(one, other)
    assert code == 0 and "0 of 8 questions flipped" in text and "beyond chance\n" not in text


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    one = questions(tmp_path / "a", "ABCDAAAA")
    shifted = questions(tmp_path / "b", "ABCDAAAA", "BBCDABCD")
    for other, message in (
        (tmp_path / "no", "no such folder"),
        (shifted, "ceval law 0: the right answer is A in A and B in B"),
    ):
        code, text, error = run(one, other)
        assert code == 1 and not text and message in error and len(error.splitlines()) == 1
    fewer = tmp_path / "c"
    table = pyarrow.parquet.read_table(one / "questions.parquet")
    write_parquet(fewer / "questions.parquet", table.slice(1))
    assert "(1 only in A, 0 only in B)" in run(one, fewer)[2]
    write_parquet(fewer / "questions.parquet", pyarrow.concat_tables([table, table]))
    assert "a question stands there twice" in run(one, fewer)[2]
    write_parquet(fewer / "questions.parquet", table.drop_columns("target"))
    assert "no column 'target'" in run(one, fewer)[2]


DVC_YAML = """stages:
  eval:
    foreach:
      base: {}
      tuned: {}
    do:
      cmd: cp -r answers/${key} data/eval/${key}
      deps:
        - answers/${key}
      outs:
        - data/eval/${key}
"""


@pytest.mark.minutes
def test_two_revisions_are_read_from_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def git(*arguments: str) -> None:
        name = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        subprocess.run(["git", *name, *arguments], check=True, capture_output=True)

    def repro(base: str, tuned: str) -> None:
        for model, answers in (("base", base), ("tuned", tuned)):
            questions(tmp_path / "answers" / model, answers)
        subprocess.run([sys.executable, "-m", "dvc", "repro"], check=True, capture_output=True)
        git("add", "dvc.lock", "dvc.yaml", "answers")
        git("commit", "-m", "answers")

    git("init", "-b", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init"], check=True, capture_output=True)
    (tmp_path / "data/eval").mkdir(parents=True)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    repro("AAAAAAAA", "ABCDAAAA")
    git("switch", "-c", "other")
    repro("AAAAAAAA", "ABCDABCD")
    for places, flipped in (
        (("main", "other"), 3),
        (("main", "tuned"), 3),
        (("HEAD~1:data/eval/base", "base"), 0),
        (("main", "other", "--model", "base"), 0),
        (("base", "tuned"), 6),
    ):
        code, text, error = run(*places)
        assert code == 0, error
        assert f"{flipped} of 8 questions flipped" in text, places
    objects = tmp_path / ".dvc/cache/files"
    (tmp_path / "data/eval/tuned/questions.parquet").unlink()
    objects.rename(tmp_path / "gone")
    for places, message in (
        (("nowhere", "base"), "nowhere: no such folder, and no instance of eval or revision of git"),
        (("main:data/none", "base"), "main:data/none/questions.parquet: not available from DVC"),
        (("main", "base"), "main:data/eval/tuned/questions.parquet: not available from DVC"),
        (("base", "tuned"), "questions.parquet: not found; it is written by: dvc repro eval"),
        (("main", "other", "--model", "best"), "main: no such folder, and no instance"),
    ):
        code, text, error = run(*places)
        assert code == 1 and not text and message in error and len(error.splitlines()) == 1, error
