"""What `aurora plan` says before a run is what the run then does."""

import dataclasses
import json
import shutil
from math import ceil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML
from stand_ins.live_bytes import LiveBytes
from stand_ins.tiny_mixtral import VOCABULARY
from stand_ins.training_case import BASE, ROWS, run, write_case, write_params
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from aurora.commands.cli import main
from aurora.commands.plan import arrival_of, protocol_costs, rows_of, stage_paths
from aurora.core.errors import DataError, ResourceError
from aurora.core.parquet import write_parquet
from aurora.eval.held_out import SLICE, held_out_loss
from aurora.eval.replies import generate
from aurora.model.folder import meta_model
from aurora.model.loading import load_model
from aurora.pipeline.params import Params, load_params
from aurora.sft.checkpoints import Checkpoints
from aurora.sft.footprint import inference_memory
from aurora.sft.plan import Machine, check, measure_rows, plan, read_speed, write_speed
from aurora.sft.train import build_trainer
from aurora.small_base.tokenizer_folder import write_tokenizer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def case(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_case(tmp_path)


@pytest.mark.parametrize(
    "sft",
    [
        {},
        pytest.param(
            {"num_train_epochs": 0.5, "effective_batch_size": 6, "gradient_accumulation_steps": 3},
            marks=pytest.mark.minutes,
        ),
        pytest.param(
            {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 4, "stop_after_steps": 5},
            marks=pytest.mark.minutes,
        ),
        pytest.param({"packing": True}, marks=pytest.mark.minutes),
    ],
)
def test_steps_tokens_and_parameters_are_those_of_the_run(case: Path, monkeypatch, sft: dict):
    params = write_params(case, save_steps=1000, **sft)
    if sft.get("packing"):  # rows short enough that some stand together
        shorter = params.sft.model_copy(update={"packing_length": 64})
        params = params.model_copy(update={"sft": shorter})
    monkeypatch.setattr("aurora.commands.plan.is_current", lambda target: True)
    found = plan(params.sft, params.quantization, BASE, rows_of(params, ROWS))
    trainer = build_trainer(BASE, ROWS, params.sft, params.quantization, case, Checkpoints(case / "c", 2))
    trainer.train()
    assert found.steps == trainer.state.global_step
    assert found.trainable == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert found.parameters == sum(p.numel() for p in meta_model(BASE).parameters())
    rows = pyarrow.parquet.read_table(ROWS / "train.parquet").to_pylist()
    assert found.rows.tokens == sum(len(row["input_ids"]) for row in rows)
    assert found.rows.longest == max(len(row["input_ids"]) for row in rows)
    assert found.rows.most_trained == max(sum(label != -100 for label in row["labels"]) for row in rows)
    if not trainer.args.num_train_epochs % 1 and not params.sft.stop_after_steps:
        assert trainer.tokens == found.tokens  # whole epochs, each token once
    assert found.tokens == pytest.approx(trainer.tokens, rel=0.15)


SHAPES = {
    "float32": {"checkpointing": False, "dtype": "float32", "dropout": 0.0},
    "float32, checkpointing": {"checkpointing": True, "dtype": "float32", "dropout": 0.0},
    "bfloat16, checkpointing, dropout": {"checkpointing": True, "dtype": "bfloat16", "dropout": 0.1},
}


SMALL = {"vocab_size": 32000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
OTHERS = {
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_size": 64, "vocab_size": 32000},  # no intermediate_size
    "gemma3": {  # a nested text_config
        "text_config": SMALL | {"head_dim": 16},
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
}


@pytest.mark.parametrize(("kind", "target"), [("bloom", "query_key_value"), ("gemma3", "q_proj")])
def test_a_config_without_intermediate_size_or_with_a_nested_one_is_planned(case: Path, kind: str, target: str):
    shutil.rmtree(BASE)
    config = CONFIG_MAPPING[kind](**OTHERS[kind])
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(BASE)
    params = load_params(Path("params.yaml"))
    sft = params.sft.model_copy(update={"lora": params.sft.lora.model_copy(update={"target_modules": (target,)})})
    found = plan(sft, params.quantization.model_copy(update={"bits": 32}), BASE, measure_rows(ROWS / "train.parquet"))
    held = {tensor.data_ptr(): 4 * tensor.numel() for tensor in model.parameters()}  # tied ones once
    assert found.training["model"] == pytest.approx(sum(held.values()), rel=0.01)
    assert found.training["one layer or the logits"] > 4 * 32000


@pytest.mark.minutes
@pytest.mark.parametrize(
    "shape",
    # A CPU takes half a minute for 16 bits; tests/sft/test_card.py has them at Mixtral's width.
    [pytest.param(name, marks=pytest.mark.slow) if "bfloat16" in name else name for name in SHAPES],
)
def test_predicted_memory_is_what_live_tensors_reach(tmp_path: Path, monkeypatch, shape: str):
    monkeypatch.chdir(tmp_path)
    params = middling(tmp_path, **SHAPES[shape])
    found = plan(params.sft, params.quantization, BASE, measure_rows(ROWS / "train.parquet"))
    trainer = build_trainer(BASE, ROWS, params.sft, params.quantization, tmp_path, Checkpoints(tmp_path / "c", 2))
    live = LiveBytes()
    live.count([*trainer.model.parameters(), *trainer.model.buffers()])
    assert found.training["model"] == pytest.approx(live.now, rel=0.03)  # the adapter is counted apart
    with live:
        trainer.train()
    assert 0.95 < sum(found.training.values()) / live.peak < 1.25
    above = live.peak - found.training["model"]
    assert 0.85 < (sum(found.training.values()) - found.training["model"]) / above < 1.35


@pytest.mark.minutes
@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param(
            "bfloat16",
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
                reason="this CPU has no bfloat16 kernels: it computes on float32 copies, which a card does not make",
            ),
        ),
    ],
)
def test_predicted_memory_of_an_evaluation_is_what_live_tensors_reach(tmp_path: Path, monkeypatch, dtype: str):
    monkeypatch.chdir(tmp_path)
    params = middling(tmp_path, checkpointing=False, dtype=dtype, dropout=0.0)
    held_out = ROWS / "held_out.parquet"
    table = pyarrow.parquet.read_table(held_out)
    place = table.schema.get_field_index("labels")
    write_parquet(held_out, table.set_column(place, "labels", table["input_ids"]))  # each token has one
    model = load_model(BASE, params.quantization)
    parts = {
        (1024, 0, 0): lambda: held_out_loss(model, held_out, None, 1024),
        (256, 0, 0): lambda: held_out_loss(model, held_out, None, 256),
        (0, 0, 6 * 208): lambda: generate(model, [[1, *range(3, 202)]] * 6, 8, frozenset([2])),
    }
    for (tokens, context, replying), part in parts.items():
        found = inference_memory(meta_model(BASE), params.quantization, tokens, context, replying, SLICE, None)
        live = LiveBytes()
        live.count([*model.parameters(), *model.buffers()])
        with live:
            part()
        assert 0.95 < sum(found.values()) / live.peak < 1.25


def middling(folder: Path, checkpointing: bool, dtype: str, dropout: float) -> Params:
    """A base whose activations weigh more than it does: 4 layers, 4 rows of 256 tokens, half of them trained."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=4000, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / BASE)
    write_tokenizer(VOCABULARY, folder / BASE)
    ids = [[1, *(3 + number % 500 for number in range(254)), 2]] * 4
    kind = pyarrow.list_(pyarrow.int32())
    labels = [[-100] * 128 + row[128:] for row in ids]
    columns = {"input_ids": pyarrow.array(ids, kind), "labels": pyarrow.array(labels, kind)}
    table = pyarrow.table({"id": [str(number) for number in range(4)], **columns})
    for name in ("train", "held_out"):
        write_parquet(folder / ROWS / f"{name}.parquet", table)
    params = write_params(
        folder, per_device_train_batch_size=4, gradient_accumulation_steps=1, save_steps=1000,
        gradient_checkpointing=checkpointing, precision={"float32": "fp32", "bfloat16": "bf16"}[dtype],
        lora={"r": 8, "lora_alpha": 16, "lora_dropout": dropout, "target_modules": ["q_proj", "v_proj"]},
    )  # fmt: skip
    quantization = params.quantization.model_copy(update={"compute_dtype": dtype})
    return params.model_copy(update={"quantization": quantization})


def test_the_paper_s_own_run_fits_its_card_and_not_a_small_one(monkeypatch):
    params = load_params(ROOT / "profiles/paper.yaml")
    monkeypatch.chdir(ROOT)
    from aurora.commands.plan import plan_of

    with torch.device("meta"):
        skeleton = MixtralForCausalLM(MixtralConfig())
    monkeypatch.setattr("aurora.commands.plan.is_current", lambda target: False)
    rows = rows_of(params, ROWS)
    assert rows.rows == ceil((51461 + 48818 + 76399) * 0.995)
    found = plan_of(params, skeleton, arrival_of(params, skeleton, BASE), rows, {}, 80 * 2**30)
    assert found.parameters == 46_702_792_704 and found.trainable == 32 * 8 * (4096 + 4096 + 4096 + 1024)
    assert (found.steps, found.effective_batch) == (3000, 8)
    # The packed model by the paper's own arithmetic, 4.127 bits a weight; the paper measured 45 GiB in training.
    assert 22.3 < found.training["model"] / 2**30 < 23.3
    check(found, 45 * 2**30)
    with pytest.raises(ResourceError, match=r"training takes about 2\d\.\d\d GiB, and the card has 20\.00 GiB free; "):
        check(found, 20 * 2**30)


def test_a_machine_that_is_too_small_is_one_line(case: Path, monkeypatch):
    params = write_params(case)
    found = plan(params.sft, params.quantization, BASE, measure_rows(ROWS / "train.parquet"))
    check(found)
    monkeypatch.setattr("aurora.sft.plan.machine", lambda: Machine("toy", 0, 1000))
    with pytest.raises(ResourceError, match=r"training takes about 0\.\d\d GiB, and toy has 0\.00 GiB free; lower sft"):
        check(found)
    monkeypatch.setattr("aurora.sft.plan.machine", lambda: Machine("toy", 1, 2**40))
    with pytest.raises(ResourceError, match=r"sft\.processes is 2, and there are 1 cards here"):
        check(dataclasses.replace(found, processes=2))
    usage = shutil.disk_usage(case)
    monkeypatch.setattr("aurora.sft.plan.shutil.disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(ResourceError, match=r"still to be written, and the disk has 0\.00 GiB free"):
        check(found)


@pytest.mark.minutes
def test_the_stage_refuses_before_it_loads(case: Path):
    code = "import stages, aurora.sft.plan as plan; plan.machine = lambda: plan.Machine('toy', 0, 1000)\n"
    code += "from stages.sft import main; main()"
    status, log = run(case, python=("-c", code))
    assert status == 1 and "error: plan: training takes about" in log
    assert "Loading weights" not in log and "Traceback" not in log


def test_a_speed_is_remembered_for_the_same_base_and_machine(case: Path):
    assert read_speed(BASE, 1) is None
    write_speed(BASE, 123.456, 1)
    assert read_speed(BASE, 1) == pytest.approx(123.456)
    assert read_speed(BASE, 2) is None
    (BASE / "manifest.json").write_text("{}")
    assert read_speed(BASE, 1) is None


def test_rows_that_are_damaged_or_missing_are_one_line(case: Path, monkeypatch):
    (case / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"bad\.parquet: not Parquet of rows"):
        measure_rows(case / "bad.parquet")
    texts = {"input_ids": [["one"]], "labels": [["two"]]}
    pyarrow.parquet.write_table(pyarrow.table(texts), case / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet: column input_ids is list<.*string>, not a list of int32"):
        measure_rows(case / "bad.parquet")
    monkeypatch.setattr("aurora.commands.plan.is_current", lambda target: False)
    with pytest.raises(DataError, match=r"sources\.alpaca_data_zh_51k states no number of rows.*dvc repro format"):
        rows_of(write_params(case), ROWS)


def test_the_command_prints_the_plan_and_fails_where_the_machine_is_too_small(case: Path, monkeypatch):
    (case / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    assert stage_paths()["rows"] == Path("data/format")
    content = YAML(typ="safe").load((case / "dvc.yaml").read_text())
    content["stages"]["sft"]["cmd"] = "python -m stages.sft --base base --rows rows --adapter models/adapter --out out"
    with (case / "dvc.yaml").open("w") as file:
        YAML().dump(content, file)
    monkeypatch.setattr("aurora.commands.plan.is_current", lambda target: True)
    done = CliRunner().invoke(main, ["plan", "--tokens-per-second", "10"])
    assert done.exit_code == 0, done.output
    assert "questions   26,970 under lm_eval, about " in done.output
    assert "12 of 4 rows, 6 an epoch" in done.output and "hours at 10 tokens/s, as given" in done.output
    done = CliRunner().invoke(main, ["plan", "--json"])
    assert json.loads(done.output)["steps"] == 12 and json.loads(done.output)["hours"] is None
    done = CliRunner().invoke(main, ["plan", "--memory-gib", "0.001"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: plan: training takes about") and "12 of 4 rows" in done.stdout
    assert "device      a card of 0.001 GiB, as given" in done.stdout
    Path("dvc.yaml").unlink()
    done = CliRunner().invoke(main, ["plan"])
    assert done.exit_code == 1 and "dvc.yaml: no stage sft; run this in the root" in done.stderr


def test_questions_are_counted_where_they_are_fetched_and_published_numbers_stand_in(tmp_path: Path):
    settings = load_params(ROOT / "profiles" / "paper.yaml").eval
    costs = protocol_costs(settings, tmp_path)
    assert costs["lm_eval"][0] == 26_970
    assert (
        costs["paper"][0] == 1_346 + 13_985 + 2 * 11_582
    )  # MMLU's first rows are lost; CMMLU is asked in two languages
    assert costs["paper"][1] > 2 * costs["lm_eval"][1]  # shots that are drawn anew share less
    small = load_params(ROOT / "params.yaml").eval
    counted = protocol_costs(small, ROOT / "samples")
    lines = [path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "samples/cmmlu/test").glob("*.csv")]
    only = small.model_copy(update={"tasks": {"cmmlu": small.tasks["cmmlu"]}})
    assert set(counted) == {"lm_eval"}
    assert 0 < protocol_costs(only, ROOT / "samples")["lm_eval"][0] <= sum(lines)
