"""Router statistics against transformers' own router logits, and a planted imbalance."""

import copy
import math
from pathlib import Path

import numpy
import pytest
import torch
from stand_ins.tiny_mixtral import load_tokenizer, tiny_model

from aurora.eval.benchmarks import read_benchmark
from aurora.eval.router import router_logits, router_statistics, routers, summary, token_rows

ROWS = [[1, 5, 9, 400, 31], [1, 8, 30], [1, *range(100, 140)]]


def test_logits_are_those_of_transformers() -> None:
    model = tiny_model()
    expected = [torch.stack(model(torch.tensor([row]), output_router_logits=True).router_logits)[:, 1:] for row in ROWS]
    found = router_logits(model, routers(model), ROWS, 16)
    assert found.shape == (2, 46, 8)
    assert found == pytest.approx(torch.cat(expected, dim=1).detach().numpy(), abs=2e-5)


def test_summary_is_plain_arithmetic() -> None:
    logits = numpy.log(numpy.array([[[0.7, 0.1, 0.2], [0.2, 0.5, 0.3]], [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]]))
    found = summary(logits, 2)
    assert found["load"] == [[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]
    assert (found["tokens"], found["max_load"]) == (2, 0.5)
    rows = [[0.7, 0.1, 0.2], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]
    expected = [-sum(p * math.log(p) for p in row) for row in rows]
    assert found["entropy"] == pytest.approx(sum(expected) / 4)


def test_a_planted_imbalance_is_seen(root: Path, tmp_path: Path) -> None:
    tokenizer, model = load_tokenizer(tmp_path), tiny_model()
    subjects = {name: read_benchmark(root / "samples" / name, name, 0, 2) for name in ("cmmlu", "mmlu")}
    plain, choices = router_statistics(model, tokenizer, subjects, 120, 64)
    assert plain["Chinese"]["tokens"] == plain["English"]["tokens"] == 120
    assert choices.num_rows == 240
    assert plain["Chinese"]["max_load"] < 0.4

    planted = copy.deepcopy(model)
    gate = routers(planted)[1]
    with torch.no_grad():  # one of these two is chosen first for nearly every hidden state
        gate.weight[2:] *= 0.01
        gate.weight[3] = 10 * gate.weight[0]
        gate.weight[5] = -gate.weight[3]
    found, after = router_statistics(planted, tokenizer, subjects, 120, 64)
    assert found["Chinese"]["load"][0] == plain["Chinese"]["load"][0]  # the layer before is as it was
    assert found["Chinese"]["load"][1][3] + found["Chinese"]["load"][1][5] > 0.45
    assert found["Chinese"]["entropy"] < plain["Chinese"]["entropy"]
    top = numpy.array([choices["top_expert"].to_pylist(), after["top_expert"].to_pylist()])
    assert (top[0] != top[1]).mean(axis=0)[0] == 0
    assert numpy.isin(top[1][:, 1], [3, 5]).mean() > 0.95


def test_questions_of_all_subjects_come_in_turn(root: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path)
    subjects = {name: read_benchmark(root / "samples" / name, name, 0) for name in ("ceval", "cmmlu", "mmlu")}
    rows = token_rows(tokenizer, subjects, 300)
    assert set(rows) == {"Chinese", "English"}
    assert {language: sum(len(row) - 1 for row in found) for language, found in rows.items()} == {
        "Chinese": 300,
        "English": 300,
    }
    first = [subject.questions[0]["question"] for subject in subjects["mmlu"]]
    decoded = [tokenizer.decode(row[1:]) for row in rows["English"]]
    assert decoded[: len(first) - 1] == first[: len(decoded)][: len(first) - 1]


def test_a_dense_model_has_none(root: Path, tmp_path: Path) -> None:
    subjects = {"mmlu": read_benchmark(root / "samples" / "mmlu", "mmlu", 0, 1)}
    statistics, choices = router_statistics(torch.nn.Linear(2, 2), load_tokenizer(tmp_path), subjects, 10, 64)
    assert statistics is None
    assert choices.num_rows == 0
