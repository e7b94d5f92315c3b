"""CMB-Exam, a Chinese medical examination: questions answered in words, letters read from the reply.

Reference: src/utils.py, score.py and workers/base.py of github.com/FreedomIntelligence/CMB at 6c8ece46, without
chain of thought. Its test questions and their answers are two files, and so two sources.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from aurora.core.errors import DataError

LETTERS = "ABCDEFG"
SEVERAL = "多项选择题"  # the one kind of question with more than one right letter
REPLY_TOKENS = 32
PROMPT = (
    "以下是中国{exam_type}中{exam_class}考试的一道{question_type}，不需要做任何分析和解释，直接输出答案选项。\n"
    "{question}\n{options}"
)
KEYS = ("id", "exam_type", "exam_class", "question_type", "question", "option")


def read_exam(paths: Sequence[Path]) -> list[dict]:
    """Questions with the keys of KEYS and `prompt`. Raises DataError for a file without them."""
    rows = []
    for path in paths:
        for number, row in enumerate(_read_list(path)):
            if any(key not in row for key in KEYS) or not isinstance(row["option"], dict):
                raise DataError(f"{path} row {number}: not all of {', '.join(KEYS)}; fetch the source again")
            options = "\n".join(f"{letter}. {text}" for letter, text in row["option"].items() if text)
            rows.append({key: row[key] for key in KEYS} | {"prompt": PROMPT.format(**row, options=options)})
    return rows


def read_answers(paths: Sequence[Path]) -> dict[object, str]:
    """The right letters of each question by its id. Raises DataError for a file without them."""
    rows = [row for path in paths for row in _read_list(path)]
    if not rows or any("id" not in row or not isinstance(row.get("answer"), str) for row in rows):
        raise DataError(f"{paths[0].parent}: no list of id and answer; correct the source")
    return {row["id"]: row["answer"] for row in rows}


def _read_list(path: Path) -> list[dict]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); fetch the source again") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: not a list of objects; correct the source")
    return rows


def chosen_letters(reply: str, question_type: str) -> str:
    """The letters that a reply chooses: behind 答案 or 正确选项 where it says so, else all that it has."""
    found = re.search(r"(答案|正确选项)(?:是|：|为|应该是|应该为)(.*?)(。|\.|$)", reply, re.DOTALL)
    letters = "".join(letter for letter in (found[2] if found else reply) if letter in LETTERS)
    return letters if question_type == SEVERAL else letters[:1]


def exam_scores(rows: Sequence[dict], replies: Sequence[str], answers: dict[object, str]) -> dict:
    """{acc, stderr, n} over all questions, and `types`: the same for each exam_type.

    Raises DataError for a question without an answer.
    """
    parts: dict[str, list[bool]] = {}
    for row, reply in zip(rows, replies, strict=True):
        if row["id"] not in answers:
            raise DataError(f"CMB question {row['id']}: no answer of this id; fetch both sources of one revision")
        right = chosen_letters(reply, row["question_type"]) == answers[row["id"]]
        parts.setdefault(row["exam_type"], []).append(right)
    every = [right for part in parts.values() for right in part]
    return _score(every) | {"types": {name: _score(part) for name, part in parts.items()}}


def _score(right: Sequence[bool]) -> dict:
    accuracy = sum(right) / len(right)
    return {"acc": accuracy, "stderr": (accuracy * (1 - accuracy) / max(1, len(right) - 1)) ** 0.5, "n": len(right)}
