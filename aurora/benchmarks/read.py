"""The one reader of benchmark files: CSV in the authors' layouts, checked row by row."""

import csv
from dataclasses import dataclass
from pathlib import Path

from aurora.core.errors import DataError

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
class Question:
    """One question of a file."""

    line: int  # where it ends in the file, from 1
    text: str
    options: tuple[str, ...]  # of A, B, C, D
    answer: str | None  # None where the file gives no answers, as in C-Eval's test split
    fields: dict[str, str]  # every column by its header; empty where the file has none


def read_questions(path: Path, layout: Layout) -> list[Question]:
    """All questions of a file. The csv module keeps texts such as `None` and `0.10`, which pandas changes.

    Raises DataError for a file that is not CSV in UTF-8, a missing or repeated column, and a row with another number
    of fields.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not CSV in UTF-8 ({error}); fetch the source again") from None
    if layout.question is None:
        return [_headless(path, line, row) for line, row in rows]
    if not rows:
        raise DataError(f"{path}: empty; it needs a header line")
    header = rows[0][1]
    for column in (layout.question, *LETTERS):
        if column not in header:
            raise DataError(f"{path}: no column '{column}' in its header {','.join(header)}; correct the source")
    for column in (layout.question, *LETTERS, layout.answer):
        if header.count(column) > 1:
            raise DataError(f"{path}: column '{column}' stands twice in its header; correct the source")
    questions = []
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path} line {line}: {len(row)} fields under {len(header)} columns; correct it")
        fields = dict(zip(header, row, strict=True))
        options = tuple(fields[letter] for letter in LETTERS)
        questions.append(Question(line, fields[layout.question], options, fields.get(layout.answer), fields))
    return questions


def _headless(path: Path, line: int, row: list[str]) -> Question:
    if len(row) != 6:
        raise DataError(f"{path} line {line}: {len(row)} fields, not question, A, B, C, D, answer; correct the source")
    return Question(line, row[0], tuple(row[1:5]), row[5], {})
