"""Adapters kept at chosen steps: the bytes of the run, and scores that a plain forward pass gives too."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from stand_ins.training_case import BASE, ROOT, ROWS, rows, write_case, write_params
from transformers import AutoModelForCausalLM

from aurora.checkpoints.params import Checkpoints
from aurora.checkpoints.score import score_checkpoints
from aurora.core.errors import DataError, ParamsError
from aurora.core.parquet import write_parquet
from aurora.eval.params import Eval
from aurora.model.quantization import Quantization
from aurora.sft.params import Sft
from aurora.sft.train import check_before, train

KEPT, ADAPTER = Path("models/checkpoints"), Path("models/adapter")
DENSE = Quantization(bits=32, double_quant=False, compute_dtype="float32")
SETTINGS = Eval.model_validate_json(
    json.dumps(
        {
            "tasks": {"mmlu": {"num_fewshot": 1, "limit": 1}},
            "batch_tokens": 256,
            "max_length": 4096,
            "chat_template": False,
            "loss_rows": None,
            "threads": 1,
            "replies": {"prompts": 3, "max_new_tokens": 4, "batch_size": 2},
        }
    )
)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a training of six steps, of which three adapters are kept."""
    monkeypatch.chdir(write_case(tmp_path))
    params = write_params(tmp_path, stop_after_steps=6, keep_checkpoints=[2, 4, 6])
    train(BASE, ROWS, ADAPTER, Path("out"), params.sft, DENSE, KEPT)
    torch.use_deterministic_algorithms(False)
    table = rows(5, seed=1)
    write_parquet(
        ROWS / "held_out.parquet", table.append_column("prompt", [["你好吗？", "谢谢", "再见", "天气", "海"]])
    )
    return tmp_path


def score(steps: tuple[int, ...], benchmarks: tuple[str, ...] = ()) -> list[dict]:
    out = Path("scores")
    out.mkdir(exist_ok=True)
    params = Checkpoints(steps=steps, benchmarks=benchmarks)
    held_out = ROWS / "held_out.parquet"
    return score_checkpoints(BASE, KEPT, held_out, ROOT / "samples", out, params, SETTINGS, DENSE)


def plain_loss(adapter: Path) -> float:
    """transformers' own loss of the base with an adapter, row by row."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), adapter).eval()
    total, count = 0.0, 0
    for row in rows(5, seed=1).to_pylist():
        labels = torch.tensor([row["labels"]])
        number = int((labels[:, 1:] != -100).sum())
        with torch.inference_mode():
            total += number * float(model(torch.tensor([row["input_ids"]]), labels=labels).loss)
        count += number
    return total / count


def test_kept_adapters_are_those_of_the_run_and_scored_one_by_one(case: Path) -> None:
    assert json.loads((KEPT / "checkpoints.json").read_text()) == {"steps": [2, 4, 6]}
    assert {path.name for path in KEPT.iterdir()} == {"step-2", "step-4", "step-6", "checkpoints.json"}
    for path in ADAPTER.iterdir():  # the last step is the training's end
        assert (KEPT / "step-6" / path.name).read_bytes() == path.read_bytes()
    weights = [(KEPT / f"step-{step}" / "adapter_model.safetensors").read_bytes() for step in (2, 4, 6)]
    assert len(set(weights)) == 3

    found = score((4, 2, 6), ("mmlu",))
    assert [line["step"] for line in found] == [2, 4, 6]
    for line in found:
        assert line["loss"] == pytest.approx(plain_loss(KEPT / f"step-{line['step']}"), abs=1e-5)
        assert {"bleu_4", "rouge_l", "zh_reply_rate", "lpr"} <= set(line)
        assert line["mmlu"]["n"] == len(list((ROOT / "samples/mmlu/data/test").glob("*.csv")))
    written = json.loads(Path("scores/scores.json").read_text())["scores"]
    assert [line["loss"] for line in written] == pytest.approx([line["loss"] for line in found], abs=1e-4)
    assert not list(Path(".aurora/eval").glob("*.sqlite"))
    assert score(()) == []


def test_what_was_not_kept_is_one_line(case: Path) -> None:
    with pytest.raises(DataError, match=r"step-8: not found; add 8 to sft\.keep_checkpoints"):
        score((8,))
    with pytest.raises(ParamsError, match=r"checkpoints\.benchmarks has ceval, which eval\.tasks lacks"):
        score((2,), ("ceval",))


def test_steps_that_never_come_are_refused_before_the_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(write_case(tmp_path))
    params = write_params(tmp_path, keep_checkpoints=[14])
    with pytest.raises(ParamsError, match="keep_checkpoints has 14, but the training ends at step 12"):
        check_before(BASE, ROWS, params.sft, DENSE)
    content = params.sft.model_dump() | {"keep_checkpoints": (3,)}
    with pytest.raises(ValueError, match="keep_checkpoints has 3, which is no multiple of save_steps 2"):
        Sft.model_validate(content)
