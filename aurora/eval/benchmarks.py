"""C-Eval, MMLU and CMMLU as their authors publish them: CSV files, read and checked row by row."""

import csv
from dataclasses import dataclass
from pathlib import Path

from aurora.core.errors import DataError
from aurora.eval.params import Benchmark

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a benchmark keeps its questions, in the names of its published tree."""

    evaluated: str  # folder of the questions that are scored
    suffix: str  # of file names, behind the subject; {split} is the folder's name
    question: str | None  # header of the question's column; None: no header, six columns
    answer: str  # header of the answer's column


LAYOUTS: dict[str, Layout] = {
    "ceval": Layout("val", "_{split}.csv", "question", "answer"),
    "mmlu": Layout("test", "_{split}.csv", None, "answer"),
    "cmmlu": Layout("test", ".csv", "Question", "Answer"),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject: documents in the fields that lm-eval's stock task expects."""

    name: str
    shots: list[dict]  # the dev split
    questions: list[dict]  # the evaluated split


def read_benchmark(
    folder: Path, name: Benchmark, num_fewshot: int, limit: int | None = None
) -> list[Subject]:
    """All subjects under `folder`, by name; of each the first `limit` questions.

    Raises DataError if a subject has fewer than `num_fewshot` dev questions, a column is missing, a row has
    another number of fields, or an answer is not A, B, C or D.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not found; it is written by: dvc repro fetch@{folder.name}")
    layout = LAYOUTS[name]
    root = folder if (folder / layout.evaluated).is_dir() else folder / "data"
    suffix = layout.suffix.format(split=layout.evaluated)
    files = sorted((root / layout.evaluated).glob(f"*{suffix}"))
    if not files:
        raise DataError(
            f"{folder}: no {layout.evaluated}/*{suffix}, where {name} keeps its questions; correct the source"
        )
    return [_read_subject(root, layout, path.name.removesuffix(suffix), num_fewshot, limit) for path in files]


def _read_subject(root: Path, layout: Layout, name: str, num_fewshot: int, limit: int | None) -> Subject:
    dev = root / "dev" / f"{name}{layout.suffix.format(split='dev')}"
    test = root / layout.evaluated / f"{name}{layout.suffix.format(split=layout.evaluated)}"
    if num_fewshot and not dev.is_file():
        raise DataError(
            f"{dev}: not found, so {name} has no shots; add the file or set num_fewshot to 0 in params.yaml"
        )
    shots = read_questions(dev, layout) if dev.is_file() else []
    if len(shots) < num_fewshot:
        raise DataError(
            f"{dev}: {len(shots)} questions, but num_fewshot is {num_fewshot}; add shots or lower it in params.yaml"
        )
    questions = read_questions(test, layout)
    if not questions:
        raise DataError(f"{test}: no questions; correct the source or remove the file")
    return Subject(name, shots, questions[:limit])


def read_questions(path: Path, layout: Layout) -> list[dict]:
    """Documents of one CSV file. The csv module keeps texts such as `None` and `0.10`, which pandas changes."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not CSV in UTF-8 ({error}); fetch the source again") from None
    if layout.question is None:
        return [_headless_document(path, line, row) for line, row in rows]
    if not rows:
        raise DataError(f"{path}: empty; it needs a header line")
    header = rows[0][1]
    for column in (layout.question, *LETTERS, layout.answer):
        if column not in header:
            raise DataError(
                f"{path}: no column '{column}' in its header {','.join(header)}; correct the source"
            )
        if header.count(column) > 1:
            raise DataError(f"{path}: column '{column}' stands twice in its header; correct the source")
    documents = []
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path} line {line}: {len(row)} fields under {len(header)} columns; correct it")
        document = dict(zip(header, row, strict=True))
        _check_answer(path, line, document[layout.answer])
        documents.append(document)
    return documents


def _headless_document(path: Path, line: int, row: list[str]) -> dict:
    if len(row) != 6:
        raise DataError(
            f"{path} line {line}: {len(row)} fields, not question, A, B, C, D, answer; correct the source"
        )
    question, *choices, answer = row
    _check_answer(path, line, answer)
    return {"question": question, "choices": choices, "answer": LETTERS.index(answer)}


def _check_answer(path: Path, line: int, answer: str) -> None:
    if answer not in LETTERS:
        raise DataError(f"{path} line {line}: the answer is {answer!r}, not A, B, C or D; correct the source")
