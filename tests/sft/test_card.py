"""The project's own code at Mixtral-8x7B's true width on a card that is not there: memory, work, waits."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.minutes,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the stub that lends torch a card is compiled by g++"),
]
ROOT = Path(__file__).parent.parent.parent
PACKED = {"what": "train", "rows": 1, "sft": {"packing": True, "packing_length": 8192}}
LONG = {"what": "train", "rows": 1, "sft": {"packing": True, "packing_length": 16384}}
LORA = {
    "target_modules": ["q_proj", "v_proj"], "target_parameters": ["gate_up_proj", "down_proj"], "lora_dropout": 0.0
}  # fmt: skip
EXPERT_LORA = {"what": "train", "sft": {"lora": LORA}}
PAPER = {"what": "train", "compute_dtype": "float16", "sft": {"gradient_accumulation_steps": 1}}


@cache
def counted(case: str) -> dict:
    """What a case counts, in a process of its own: torch believes in the card for good."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "stand_ins.fake_cuda.cases", case]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def count(case: dict, **changes: object) -> dict:
    return counted(json.dumps(case | changes))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(PACKED, id="packed 8,192"),
        pytest.param(PAPER, id="the paper's, fp16"),
        pytest.param(EXPERT_LORA, id="LoRA on experts"),
        *(
            pytest.param(case, id=name, marks=pytest.mark.slow)
            for name, case in {
                "8 x 1,024": {"what": "train", "rows": 8},
                "2 x 1,024": {"what": "train", "rows": 2},
                "8 x 1,024, LoRA on experts": EXPERT_LORA | {"rows": 8},
                "packed 16,384, skewed": LONG | {"routing": "skewed"},
                "packed 8,192, skewed, fp16": PACKED | {"routing": "skewed", "compute_dtype": "float16"},
                "2 x 1,024, every layer": {"what": "train", "rows": 2, "layers": 32},
                "packed 16,384, skewed, every layer": LONG | {"routing": "skewed", "layers": 32},
            }.items()
        ),
    ],
)
def test_a_training_takes_what_the_plan_says_and_no_needless_work(case: dict):
    found, layers = count(case), case.get("layers", 2)
    assert 0.95 < found["planned_gib"] / found["peak_gib"] < 1.25
    assert found["trained_dtype"] == "torch.float32"
    assert found["not_deterministic"] == [] and found["filled_gigabytes"] == 0
    # Experts and attention once in forward and once in backward, attention in the recomputation too.
    assert found["dequantized_gigabytes"] < 6.0 * layers
    fp16, adapted = case.get("compute_dtype") == "float16", "lora" in case.get("sft", {})
    assert found["synchronisations"] <= layers + (8 if fp16 else 6)
    assert found["kernels"] < (600 if fp16 else 450 if adapted else 250) * layers + 100
    if layers == 32:
        assert 46 < found["tera_operations"] * 1e3 / found["tokens"] < 80


@pytest.mark.parametrize("rows", [1, pytest.param(17, marks=pytest.mark.slow)])
def test_a_reply_s_token_reads_its_experts_in_four_bits(rows: int):
    found = count({"what": "replies", "rows": rows, "length": 512})
    assert found["dequantized_gigabytes"] < 1
    assert found["synchronisations"] <= 2 + 4
    assert found["kernels"] <= 2 * (24 if rows == 1 else 70) + 27
    assert 0.95 < found["planned_gib"] / found["peak_gib"] < 1.25


@pytest.mark.slow
def test_a_pass_of_questions_takes_what_the_plan_says():
    found = count({"what": "questions", "length": 16384})
    assert 0.95 < found["planned_gib"] / found["peak_gib"] < 1.25
    assert found["synchronisations"] <= 2 + 6 and found["dequantized_gigabytes"] < 6


@pytest.mark.slow
def test_drift_and_chat_run_on_a_card():
    found = count({"what": "drift"})
    assert (found["shape"], found["device"], found["dtype"]) == ([32, 32000], "cpu", "torch.float32")
    assert count({"what": "chat", "length": 512})["dequantized_gigabytes"] < 1


def test_the_roofline_of_the_plan_is_that_of_the_recorded_counts():
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    from aurora.commands.roofline import CARDS, tokens_per_second
    from aurora.pipeline.params import load_params
    from aurora.sft.footprint import Shape

    params = load_params(ROOT / "profiles" / "paper-fast.yaml")
    with torch.device("meta"):
        skeleton = MixtralForCausalLM(MixtralConfig())
    shape = Shape(skeleton, params.quantization, 80 * 10**9)
    record = json.loads((ROOT / "benchmarks/results/card_counts.json").read_text(encoding="utf-8"))
    for case in ("train 2 x 1,024", "train packed 8,192"):
        counts = record["values"]["after"][case]
        limit = tokens_per_second(shape, params.sft, counts["tokens"], CARDS["H100 SXM"])
        assert limit == pytest.approx(counts["tokens_per_second"], rel=0.1)
