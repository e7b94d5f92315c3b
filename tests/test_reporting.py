"""What git tracks, gathered from made-up stage outputs."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from aurora.errors import DataError
from aurora.reporting import accuracy_table, write_report

SCORE = {"acc": 0.5, "stderr": 0.1, "n": 8}


@pytest.fixture
def outputs(tmp_path: Path) -> dict[str, Path]:
    """Outputs of every stage before report, as small as they can be."""
    for name in ("clean", "format", "merge", "sft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"rows": 1}')
    topics = {"food": 2, "society, law and politics": 5, "health": 2}
    (tmp_path / "clean/metrics.json").write_text(json.dumps({"rows": 1, "topics": topics}))
    (tmp_path / "sft/curve.csv").write_text("step,loss\n1,2.0\n")
    for model, reply in (("base", "Hello | *there*"), ("tuned", "你好\n# 标题")):
        folder = tmp_path / model
        folder.mkdir()
        results = dict.fromkeys(("ceval", "mmlu", "cmmlu"), SCORE)
        results |= {"loss": 2.0, "zh_reply_rate": 0.5, "subjects": {"ceval_law": SCORE}}
        (folder / "results.json").write_text(json.dumps(results))
        table = pyarrow.table({"id": ["a"], "prompt": ["你好"], "reply": [reply], "language": ["x"]})
        pyarrow.parquet.write_table(table, folder / "replies.parquet")
    (tmp_path / "card").mkdir()
    (tmp_path / "card/README.md").write_text("---\ntags: []\n---\n# Tuned\n\n## Scores\n\nLater.\n")
    return {path.name: path for path in tmp_path.iterdir()}


def gather(outputs: dict[str, Path], out: Path) -> dict:
    metrics = {name: outputs[name] / "metrics.json" for name in ("clean", "format", "merge")}
    folders = {model: outputs[model] for model in ("base", "tuned")}
    cards = {"model_card.md": outputs["card"] / "README.md"}
    return write_report(
        metrics["clean"], metrics["format"], outputs["sft"], metrics["merge"], folders, cards, out
    )


def test_the_tables_hold_what_the_stages_measured(outputs, tmp_path: Path):
    out = tmp_path / "metrics"
    gather(outputs, out)
    scores = json.loads((out / "eval.json").read_text())
    assert scores["base"]["ceval"] == SCORE
    assert "subjects" not in scores["base"]
    assert "ceval_law,tuned,0.5000,8" in (out / "subjects.csv").read_text()
    assert (out / "accuracy.csv").read_text().splitlines()[1] == "ceval base,base,0.5000,0.1000,8"
    table = ["topic,rows", '"society, law and politics",5', '"food",2', '"health",2']
    assert (out / "topics.csv").read_text().splitlines() == table
    assert (out / "loss.csv").read_text() == "step,loss\n1,2.0\n"


def test_a_reply_cannot_open_markup_of_its_own(outputs, tmp_path: Path):
    gather(outputs, tmp_path / "metrics")
    page = (tmp_path / "metrics/replies.md").read_text()
    assert "Hello \\| \\*there\\*" in page
    assert "\n# 标题" not in page


def test_a_missing_or_unlike_output_names_its_stage(outputs, tmp_path: Path):
    (outputs["sft"] / "curve.csv").unlink()
    with pytest.raises(DataError, match=r"curve\.csv: not found; it is written by: dvc repro sft"):
        gather(outputs, tmp_path / "metrics")
    (outputs["sft"] / "curve.csv").write_text("step\n")
    table = pyarrow.table({"id": ["b"], "prompt": ["x"], "reply": ["y"], "language": ["x"]})
    pyarrow.parquet.write_table(table, outputs["tuned"] / "replies.parquet")
    with pytest.raises(DataError, match="answer different prompts"):
        gather(outputs, tmp_path / "metrics")
    assert not (tmp_path / "metrics").exists()


def test_a_benchmark_that_was_not_run_has_no_bar():
    assert accuracy_table({"base": {"mmlu": SCORE}, "tuned": {"mmlu": SCORE}}).count("\n") == 3
