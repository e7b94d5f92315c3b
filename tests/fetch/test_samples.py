"""The embedded sources are what they say: upstream formats, single and several rounds, real kinds of defects."""

import csv
import json
from pathlib import Path

import pytest

HEADERS = {
    "ceval": ["id", "question", "A", "B", "C", "D", "answer"],  # its dev files have an explanation too
    "cmmlu": ["", "Question", "A", "B", "C", "D", "Answer"],
}
QUESTIONS = {"ceval": "val/*.csv", "cmmlu": "test/*.csv", "mmlu": "data/test/*.csv"}


def test_conversations_are_in_the_upstream_formats(root: Path):
    count = 0
    for name in ("alpaca_data_zh_51k", "alpaca_gpt4_data_zh"):
        rows = json.loads((root / f"samples/{name}.json").read_text(encoding="utf-8"))
        usual = [row for row in rows if set(row) == {"instruction", "input", "output"}]
        assert len(usual) > 0.95 * len(rows)
        count += len(rows)
    rounds = []
    for line in (root / "samples/sharegpt_70k.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(row) == {"conversation_id", "category", "conversation"}
        assert all(set(turn) == {"human", "assistant"} for turn in row["conversation"])
        rounds.append(len(row["conversation"]))
    assert count + len(rounds) >= 400
    assert sum(number > 1 for number in rounds) >= 50
    assert sum(number == 1 for number in rounds) >= 50


def test_clean_has_work_of_many_kinds(root: Path):
    sources = json.loads((root / "metrics/clean.json").read_text(encoding="utf-8"))["sources"]
    reasons = {reason for source in sources.values() for reason in source["dropped"]}
    repaired = {kind for source in sources.values() for kind in source["repaired"]}
    assert {"contaminated", "empty_answer", "exact_duplicate", "near_duplicate", "mojibake", "other_model"} <= reasons
    assert {"refusal", "truncated_answer", "unreachable_prompt", "placeholder_answer"} <= reasons
    assert {"html_removed", "invisible_removed", "key_translated", "no_input_marker"} <= repaired
    assert "trailing_user_trimmed" in repaired


@pytest.mark.parametrize("benchmark", QUESTIONS)
def test_questions_are_in_the_upstream_formats(root: Path, benchmark: str):
    questions = 0
    for path in sorted((root / "samples" / benchmark).glob(QUESTIONS[benchmark])):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        if benchmark in HEADERS:
            assert rows.pop(0) == HEADERS[benchmark]
        assert {len(row) for row in rows} == {len(HEADERS.get(benchmark, range(6)))}
        questions += len(rows)
    assert questions >= 96
    shots = sorted((root / "samples" / benchmark).glob("**/dev/*.csv"))
    assert len(shots) == len(list((root / "samples" / benchmark).glob(QUESTIONS[benchmark])))
    for path in shots:
        assert len(path.read_text(encoding="utf-8").splitlines()) >= 5
