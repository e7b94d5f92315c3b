"""Every stage's own command, in dvc.yaml's order, on real rows and on all subjects of the real benchmarks."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest
from stand_ins.stage_runs import ROOT, fetch, read_yaml, stages, write_params


@pytest.mark.minutes
def test_the_pipeline_runs_on_real_rows_and_all_subjects(real_data: Path, tmp_path: Path):
    params = read_yaml(ROOT / "params.yaml")
    instructions, benchmarks = real_data / "instructions", real_data / "benchmarks"
    real = {
        "alpaca_data_zh_51k": instructions / "alpaca_data_zh_51k/rows_1517.json",
        "alpaca_gpt4_data_zh": instructions / "alpaca_gpt4_data_zh/rows_500_alpaca.json",
        "sharegpt_70k": instructions / "sharegpt_70k/sharegpt_zh_500.jsonl",
        "mmlu": benchmarks / "mmlu",
        "ceval": benchmarks / "ceval",
        "cmmlu": benchmarks / "cmmlu",
        "language_confusion": ROOT / "samples/language_confusion",
    }
    for name, path in real.items():
        params["sources"][name] |= {"uri": str(path)}
    params["format"]["held_out"] = 0.02  # a loss over all of them is most of the time
    params["sft"] |= {"stop_after_steps": 3, "eval_steps": 1000}
    params["sft"] |= {"per_device_train_batch_size": 2, "effective_batch_size": 2}
    params["eval"]["tasks"] = {name: {"num_fewshot": 5, "limit": 1} for name in ("ceval", "mmlu", "cmmlu")}
    params["eval"] |= {"loss_rows": 8, "replies": {"prompts": 4, "max_new_tokens": 8, "batch_size": 4}}
    write_params(tmp_path, params)
    fetch(tmp_path, params, *params["sources"])
    stages(tmp_path, "clean", "format", "sft", "merge", "eval@base", "eval@tuned", "checkpoints", "report")

    clean = json.loads((tmp_path / "metrics/clean.json").read_text())
    read = {name: entry["read"] for name, entry in clean["sources"].items()}
    assert read == {"alpaca_data_zh_51k": 1517, "alpaca_gpt4_data_zh": 500, "sharegpt_70k": 500}
    for entry in clean["sources"].values():
        assert entry["kept"] + sum(entry["dropped"].values()) == entry["read"]
    kept = pyarrow.parquet.read_table(tmp_path / "data/clean/conversations.parquet").num_rows
    assert kept == sum(entry["kept"] for entry in clean["sources"].values())
    assert 2300 < kept < 2517
    rows = sum(
        pyarrow.parquet.read_table(tmp_path / f"data/format/{name}.parquet").num_rows for name in ("train", "held_out")
    )
    form = json.loads((tmp_path / "metrics/format.json").read_text())
    assert rows == form["train_rows"] + form["held_out_rows"]
    assert json.loads((tmp_path / "metrics/sft.json").read_text())["steps"] == 3
    scores = json.loads((tmp_path / "metrics/eval.json").read_text())
    for model in ("base", "tuned"):
        assert {name: scores[model][name]["n"] for name in ("ceval", "mmlu", "cmmlu")} == {
            "ceval": 52,
            "mmlu": 57,
            "cmmlu": 67,
        }
        assert 0 <= scores[model]["zh_reply_rate"] <= 1
    tracked = [path for path in (tmp_path / "metrics").rglob("*") if path.is_file()]
    tracked += [tmp_path / "REPORT.md", tmp_path / "data/report/report.html"]
    assert not [path for path in tracked if str(tmp_path).encode() in path.read_bytes()]
    page = (tmp_path / "metrics/pictures/subjects.svg").read_text()
    assert page.count("<circle") == 2 * 176 + 2  # and the legend
