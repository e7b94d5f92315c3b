"""Subjects of C-Eval, MMLU and CMMLU with their shots and questions, as documents of lm-eval's stock tasks."""

from dataclasses import dataclass
from pathlib import Path

from aurora.benchmarks.read import LAYOUTS, LETTERS, Layout, Question, read_questions
from aurora.core.errors import DataError
from aurora.eval.params import Benchmark


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject: documents in the fields that lm-eval's stock task expects."""

    name: str
    shots: list[dict]  # the dev split
    questions: list[dict]  # the evaluated split


def read_benchmark(folder: Path, name: Benchmark, num_fewshot: int, limit: int | None = None) -> list[Subject]:
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
    shots = read_documents(dev, layout) if dev.is_file() else []
    if len(shots) < num_fewshot:
        raise DataError(
            f"{dev}: {len(shots)} questions, but num_fewshot is {num_fewshot}; add shots or lower it in params.yaml"
        )
    questions = read_documents(test, layout)
    if not questions:
        raise DataError(f"{test}: no questions; correct the source or remove the file")
    return Subject(name, shots, questions[:limit])


def read_documents(path: Path, layout: Layout) -> list[dict]:
    """Questions of one file in the fields that lm-eval's stock task expects. Raises DataError for a wrong answer."""
    return [_document(path, layout, question) for question in read_questions(path, layout)]


def _document(path: Path, layout: Layout, question: Question) -> dict:
    if question.answer is None:
        raise DataError(f"{path}: no column '{layout.answer}', so there is nothing to score; correct the source")
    if question.answer not in LETTERS:
        raise DataError(
            f"{path} line {question.line}: the answer is {question.answer!r}, not A, B, C or D; correct the source"
        )
    if question.fields:
        return question.fields
    answer = LETTERS.index(question.answer)
    return {"question": question.text, "choices": list(question.options), "answer": answer}
