"""lm-eval's command line with hf-prefix beside its own backend, on what export wrote."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from stand_ins.tiny_mixtral import write_model

from aurora.commands.cli import main

TASK = """\
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{metric: acc}]
"""


@pytest.mark.minutes
def test_hf_prefix_scores_as_lm_eval_s_own_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_model(tmp_path / "model")
    (tmp_path / "tasks").mkdir()
    rows = [{"question": f"第{number}题？", "answer": number % 4} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks/letters.yaml").write_text(TASK.replace("FILE", str(tmp_path / "rows.jsonl")))
    found = {}
    for model in ("hf-prefix", "hf"):
        out = tmp_path / model
        done = CliRunner().invoke(
            main,
            ["lm_eval", "--model", model, "--model_args", f"pretrained={tmp_path}/model,dtype=float32", "--device", "cpu",
             "--tasks", "letters", "--include_path", f"{tmp_path}/tasks", "--output_path", str(out), "--log_samples"],
            catch_exceptions=False,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        (samples,) = out.rglob("samples_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        found[model] = {row["doc_id"]: [float(each[0]) for each in row["filtered_resps"]] for row in rows}
    assert found["hf-prefix"].keys() == found["hf"].keys()
    for place, values in found["hf"].items():
        assert found["hf-prefix"][place] == pytest.approx(values, abs=1e-4)
