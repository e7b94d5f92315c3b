"""Fetched prompts: read, answered in the training prompt, and written in the form that others judge."""

import json
import shutil
import zipfile
from pathlib import Path

import pyarrow.parquet
import pytest
from stand_ins.tiny_mixtral import load_tokenizer, tiny_model

from aurora.core.errors import DataError
from aurora.eval.medical import exam_scores
from aurora.eval.params import Replies
from aurora.eval.prompt_set import question_encoder
from aurora.eval.prompt_sources import answer_sources, encode_sources, read_prompt_sources
from aurora.eval.replies import Prompt, greedy_replies
from aurora.fetch.fetch import fetch
from aurora.sources.source import Source

PARAMS = Replies(prompts=1, max_new_tokens=6, batch_size=4)
LINES = [
    {
        "question_id": 1,
        "category": "专业能力",
        "subcategory": "音乐",
        "question": "单簧管是什么？",
        "reference": "乐器",
    },
    {
        "question_id": 7,
        "category": "数学计算",
        "subcategory": "初等数学",
        "question": "一加一等于几？",
        "reference": "二",
    },
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
    assert [(source.name, len(source.rows)) for source in sources] == [
        ("alignbench", 2),
        ("language_confusion", 10),
    ]
    model, tokenizer = tiny_model(), load_tokenizer(tmp_path)
    encoded = encode_sources(tokenizer, sources, "mistral", PARAMS, 4096)
    out = tmp_path / "out"
    out.mkdir()
    results = answer_sources(model, tokenizer, sources, encoded, PARAMS, out, "abc")

    lines = [json.loads(line) for line in (out / "alignbench.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = question_encoder(tokenizer, "mistral")(LINES[1]["question"], True)
    (reply,) = greedy_replies(model, tokenizer, [Prompt("", "", ids)], 6, 1)
    assert lines[1] == {**LINES[1], "model_id": "abc", "answer_id": "7_abc", "answer": reply}

    assert set(results["language_confusion"]) == {"language_confusion"}
    scores = results["language_confusion"]["language_confusion"]
    assert {(task, name): part["n"] for task, sets in scores.items() for name, part in sets.items()} == {
        ("monolingual", "own"): 6,
        ("crosslingual", "own"): 4,
    }
    assert "lpr" in scores["monolingual"]["own"]
    rows = pyarrow.parquet.read_table(out / "language_confusion.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == sources[1].texts()
    assert set(rows[0]) == {"task", "set", "prompt", "reply", "language", "verdict"}


EXAM = [
    {
        "id": 1,
        "exam_type": "医师考试",
        "exam_class": "执业医师",
        "question_type": "单项选择题",
        "question": "正常体温大约是",
        "option": {"A": "35 度", "B": "36.5 度", "C": "39 度", "D": "", "E": "41 度"},
    },
    {
        "id": 2,
        "exam_type": "护理考试",
        "exam_class": "主管护师",
        "question_type": "多项选择题",
        "question": "洗手可以预防",
        "option": {"A": "感冒", "B": "腹泻", "C": "骨折"},
    },
]


def test_the_medical_examination_is_scored_as_its_authors_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.json").write_text(json.dumps(EXAM), encoding="utf-8")
    Path("a.json").write_text(
        json.dumps([{"id": 1, "answer": "B"}, {"id": 2, "answer": "AB"}]), encoding="utf-8"
    )
    for name, file, format_ in (("cmb", "q.json", "cmb"), ("cmb_answers", "a.json", "cmb_answers")):
        source = Source(kind="prompts", uri=file, dep=file, format=format_, licence="Apache-2.0")
        fetch(name, source, Path("prompts") / name)
    (source,) = read_prompt_sources(Path("prompts"))
    assert source.texts()[0] == (
        "以下是中国医师考试中执业医师考试的一道单项选择题，不需要做任何分析和解释，直接输出答案选项。\n"
        "正常体温大约是\nA. 35 度\nB. 36.5 度\nC. 39 度\nE. 41 度"
    )
    for replies, accuracy in (
        (["B", "A、B"], 1.0),
        (["答案是B。A 不对", "正确选项为AB"], 1.0),
        (["BC", "A"], 0.5),  # of a question with one answer the first letter counts
        (["", "ABC"], 0.0),
    ):
        found = exam_scores(source.rows, replies, source.answers)
        assert (found["acc"], found["n"], set(found["types"])) == (accuracy, 2, {"医师考试", "护理考试"})
    with pytest.raises(DataError, match="CMB question 2: no answer of this id"):
        exam_scores(source.rows, ["A", "B"], {1: "A"})
    shutil.rmtree("prompts/cmb_answers")
    with pytest.raises(DataError, match="none of format cmb_answers"):
        read_prompt_sources(Path("prompts"))


def test_a_prompt_beyond_the_context_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = read_prompt_sources(fetched(tmp_path, root, monkeypatch))
    with pytest.raises(
        DataError, match=r"alignbench, prompt \d: \d+ tokens, and a reply of 6, but the context has 12"
    ):
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


def test_a_table_without_prompts_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetched(tmp_path, root, monkeypatch) / "language_confusion/monolingual/own/zh.csv"
    path.write_text("question,source\n你好,own\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"zh\.csv row 0: no prompt or no source"):
        read_prompt_sources(path.parents[3])
