"""Fetched prompts: read, answered in the training prompt, and written in the form that others judge."""

import json
import zipfile
from pathlib import Path

import pyarrow.parquet
import pytest
from stand_ins.tiny_mixtral import load_tokenizer, tiny_model

from aurora.core.errors import DataError
from aurora.eval.params import Replies
from aurora.eval.prompt_set import question_encoder
from aurora.eval.prompt_sources import answer_sources, encode_sources, read_prompt_sources
from aurora.eval.replies import Prompt, greedy_replies
from aurora.fetch.fetch import fetch
from aurora.sources.source import Source

PARAMS = Replies(prompts=1, max_new_tokens=6, batch_size=4)
LINES = [
    {"question_id": 1, "category": "专业能力", "subcategory": "音乐", "question": "单簧管是什么？", "reference": "乐器"},
    {"question_id": 7, "category": "数学计算", "subcategory": "初等数学", "question": "一加一等于几？", "reference": "二"},
]


def fetched(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both formats as fetch leaves them: an archive as published, and JSON lines."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("test_sets.zip", "w") as archive:
        for path in (root / "samples" / "language_confusion").rglob("*.csv"):
            inside = path.relative_to(root / "samples" / "language_confusion")
            archive.write(path, f"test_sets/{inside.as_posix()}")
            archive.write(path, f"test_sets/{inside.parent.as_posix()}/de.csv")
    Path("data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    for name, uri, format_ in (
        ("language_confusion", "test_sets.zip!/test_sets", "language_confusion"),
        ("alignbench", "data.jsonl", "alignbench"),
    ):
        source = Source(kind="prompts", uri=uri, dep=uri.split("!")[0], format=format_, licence="Apache-2.0")
        fetch(name, source, Path("prompts") / name)
    return tmp_path / "prompts"


def test_prompts_are_read_answered_and_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetched(tmp_path, root, monkeypatch)
    sources = read_prompt_sources(folder)
    assert [(source.name, len(source.rows)) for source in sources] == [("alignbench", 2), ("language_confusion", 10)]
    model, tokenizer = tiny_model(), load_tokenizer(tmp_path)
    encoded = encode_sources(tokenizer, sources, "mistral", PARAMS, 4096)
    out = tmp_path / "out"
    out.mkdir()
    results = answer_sources(model, tokenizer, sources, encoded, PARAMS, out, "abc")

    lines = [json.loads(line) for line in (out / "alignbench.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = question_encoder(tokenizer, "mistral")(LINES[1]["question"], True)
    (reply,) = greedy_replies(model, tokenizer, [Prompt("", "", ids)], 6, 1)
    assert lines[1] == {**LINES[1], "model_id": "abc", "answer_id": "7_abc", "answer": reply}

    assert set(results) == {"language_confusion"}
    scores = results["language_confusion"]
    assert {(task, name): part["n"] for task, sets in scores.items() for name, part in sets.items()} == {
        ("monolingual", "own"): 6,
        ("crosslingual", "own"): 4,
    }
    assert "lpr" in scores["monolingual"]["own"]
    rows = pyarrow.parquet.read_table(out / "language_confusion.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == sources[1].texts()
    assert set(rows[0]) == {"task", "set", "prompt", "reply", "language", "verdict"}


def test_a_prompt_beyond_the_context_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = read_prompt_sources(fetched(tmp_path, root, monkeypatch))
    with pytest.raises(DataError, match=r"alignbench, prompt \d: \d+ tokens, and a reply of 6, but the context has 12"):
        encode_sources(load_tokenizer(tmp_path), sources, "mistral", PARAMS, 12)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("alignbench", '{"question_id": 1}\n', "line 1: no JSON object with question_id and question"),
        ("alignbench", '{"question_id": 1, "question": " "}\n', "line 1: an empty question"),
        ("alignbench", "", "no line"),
    ],
)
def test_damage_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    folder = fetched(tmp_path, root, monkeypatch)
    (folder / name / "data.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_prompt_sources(folder)


def test_a_table_without_prompts_is_one_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetched(tmp_path, root, monkeypatch) / "language_confusion/monolingual/own/zh.csv"
    path.write_text("question,source\n你好,own\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"zh\.csv row 0: no prompt or no source"):
        read_prompt_sources(path.parents[3])
