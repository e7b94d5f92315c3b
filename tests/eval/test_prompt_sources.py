"""Fetched prompts: read, answered in the training prompt, and written in the form that others judge."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from stand_ins.tiny_mixtral import load_tokenizer, tiny_model

from aurora.core.errors import DataError
from aurora.core.files import write_json
from aurora.eval.chat_encoder import ChatEncoder
from aurora.eval.medical import exam_scores
from aurora.eval.params import Replies
from aurora.eval.prompt_sources import answer_sources, encode_sources, read_prompt_sources
from aurora.eval.replies import Prompt, greedy_replies

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


def place(folder: Path, format_: str, files: list[str]) -> Path:
    """A manifest beside files, as fetch leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"source": folder.name, "kind": "prompts", "format": format_, "rows": None}
    write_json(folder / "manifest.json", manifest | {"files": [{"path": name} for name in files]})
    return folder


def fetched(tmp_path: Path, root: Path) -> Path:
    """Both formats, the benchmark with a language that is not asked for."""
    folder = tmp_path / "prompts"
    shutil.copytree(root / "samples" / "language_confusion", folder / "language_confusion")
    german = folder / "language_confusion/monolingual/own/de.csv"
    german.write_text("prompt,source,language\nWas ist das?,own,de\n", encoding="utf-8")
    files = [path.relative_to(german.parents[2]).as_posix() for path in german.parents[2].rglob("*.csv")]
    place(folder / "language_confusion", "language_confusion", sorted(files))
    lines = "".join(json.dumps(line) + "\n" for line in LINES)
    (place(folder / "alignbench", "alignbench", ["data.jsonl"]) / "data.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_prompts_are_read_answered_and_written(root: Path, tmp_path: Path) -> None:
    folder = fetched(tmp_path, root)
    sources = read_prompt_sources(folder)
    assert [(source.name, len(source.rows)) for source in sources] == [("alignbench", 2), ("language_confusion", 10)]
    model, tokenizer = tiny_model(), load_tokenizer(tmp_path)
    encoded = encode_sources(tokenizer, sources, "mistral", PARAMS, 4096)
    out = tmp_path / "out"
    out.mkdir()
    results = answer_sources(model, tokenizer, sources, encoded, PARAMS, out, "abc")

    lines = [json.loads(line) for line in (out / "alignbench.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = ChatEncoder(tokenizer, "mistral").question(LINES[1]["question"], True)
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


def test_the_medical_examination_is_scored_as_its_authors_do(tmp_path: Path) -> None:
    answers = [{"id": 1, "answer": "B"}, {"id": 2, "answer": "AB"}]
    for name, rows in (("cmb", EXAM), ("cmb_answers", answers)):
        path = place(tmp_path / name, name, ["rows.json"]) / "rows.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
    (source,) = read_prompt_sources(tmp_path)
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
    shutil.rmtree(tmp_path / "cmb_answers")
    with pytest.raises(DataError, match="none of format cmb_answers"):
        read_prompt_sources(tmp_path)


def test_a_prompt_beyond_the_context_is_one_line(root: Path, tmp_path: Path) -> None:
    sources = read_prompt_sources(fetched(tmp_path, root))
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
def test_damage_is_one_line(root: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = fetched(tmp_path, root)
    (folder / name / "data.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_prompt_sources(folder)


def test_a_table_without_prompts_is_one_line(root: Path, tmp_path: Path) -> None:
    path = fetched(tmp_path, root) / "language_confusion/monolingual/own/zh.csv"
    path.write_text("question,source\n你好,own\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"zh\.csv row 0: no prompt or no source"):
        read_prompt_sources(path.parents[3])
