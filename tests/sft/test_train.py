"""The trainer does what a flat loop does, and what it cannot do it says in one line."""

import json
import math
import re
import shutil
from pathlib import Path

import pyarrow
import pytest
import torch
from safetensors.torch import load_file
from stand_ins import flat_loop
from stand_ins.tiny_mixtral import tiny_model
from stand_ins.training_case import BASE, ROWS, rows, write_case, write_params
from trl import SFTConfig, SFTTrainer

from aurora.core.errors import AuroraError, DataError, ModelError, ParamsError
from aurora.core.parquet import write_parquet
from aurora.sft.checkpoints import Checkpoints
from aurora.sft.curves import curve
from aurora.sft.params import Sft
from aurora.sft.requirements import check_surroundings
from aurora.sft.train import build_trainer, check_before, save_adapter, train
from aurora.sft.trainer import EpochOrder, row_ids

pytestmark = pytest.mark.minutes


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    return write_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(autouse=True)
def settings(case, monkeypatch):
    """Tests run in the folder; what training sets for its whole process is set back."""
    monkeypatch.chdir(case)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def trained(case: Path, tmp_path: Path, **sft: object):
    """A trainer that has run, without a checkpoint."""
    params = write_params(case, save_steps=1000, **sft)
    torch.set_num_threads(1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    trainer = build_trainer(BASE, ROWS, params.sft, params.quantization, tmp_path, checkpoints)
    trainer.args.eval_on_start = True
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "sft",
    [
        {"learning_rate": 1e-2, "max_grad_norm": 0.05},  # clipped at each step
        pytest.param(
            {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 4, "weight_decay": 0.1},
            marks=pytest.mark.minutes,
        ),
    ],
    ids=["accumulated", "at once"],
)
def test_every_step_equals_the_flat_loop(case: Path, tmp_path: Path, sft: dict):
    params = write_params(case, **sft)
    expected = flat_loop.train(BASE, ROWS / "train.parquet", params.sft, params.quantization)
    history = trained(case, tmp_path, **sft).state.log_history
    steps = [entry for entry in history if "loss" in entry]
    assert len(steps) == len(expected["loss"]) == 12  # 22 rows: five steps of 4 and one of 2, twice
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [entry[name] for entry in steps] == pytest.approx(expected[name], abs=1e-5)
    assert steps[0]["loss"] - steps[-1]["loss"] > 0.05  # and something was learned


def test_no_memory_is_read_that_was_not_written(case: Path, tmp_path: Path, monkeypatch):
    """torch fills new tensors with NaN on request: be_deterministic can do without, for the losses are the same."""
    torch.use_deterministic_algorithms(True)
    losses = []
    for fill in (True, False):
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", fill)
        history = trained(case, tmp_path / str(fill), stop_after_steps=2).state.log_history
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    assert losses[0] == losses[1] and all(map(math.isfinite, losses[0]))


def test_a_kernel_without_a_deterministic_form_is_one_line(case: Path, tmp_path: Path, monkeypatch):
    def stop(self, **_: object) -> None:
        raise RuntimeError("index_thing_cuda does not have a deterministic implementation, but you set 'torch.use_")

    monkeypatch.setattr("aurora.sft.trainer.LabelledPositionsTrainer.train", stop)
    params = write_params(case)
    with pytest.raises(ModelError, match=r"index_thing_cuda has no deterministic kernel on cpu, so equal runs"):
        train(BASE, ROWS, tmp_path / "adapter", tmp_path / "out", params.sft, params.quantization)


def test_held_out_loss_is_per_token_whatever_the_batches(case: Path, tmp_path: Path):
    trainer = trained(case, tmp_path, stop_after_steps=1)
    first = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    table = pyarrow.parquet.read_table(ROWS / "held_out.parquet").to_pylist()
    params = write_params(case)
    model = flat_loop.load_model(BASE, params.quantization)
    with torch.no_grad():
        total = sum(float(flat_loop.likelihood(model, flat_loop.padded([row]))) for row in table)
    count = sum(label != -100 for row in table for label in row["labels"][1:])
    assert first == pytest.approx(total / count, abs=1e-5)


def test_adapter_is_float32_and_names_no_machine(case: Path, tmp_path: Path):
    trainer = trained(case, tmp_path, stop_after_steps=2)
    record = {
        "base": dict.fromkeys(("uri", "revision", "licence", "weights_sha256")),
        "rows": {"train": "a", "held_out": "b", "sources": {}},
        **{part: {} for part in ("sft", "quantization", "versions")},
    }
    save_adapter(trainer, tmp_path / "adapter", BASE, record)
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    # TRL rounds the first weights to bfloat16; ours were drawn in float32 and trained as such.
    assert any((weight != weight.bfloat16().float()).any() for name, weight in weights.items() if "_A" in name)
    text = (tmp_path / "adapter/adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "base"
    assert str(tmp_path) not in text and str(case) not in text


def test_an_order_is_a_permutation_known_by_seed_and_epoch_with_blanks_last():
    order = EpochOrder(rows=5, blanks=3, seed=7)
    first = list(order)
    assert len(order) == 8 and sorted(first[:5]) == [0, 1, 2, 3, 4] and first[5:] == [5, 6, 7]
    assert list(order) == first
    order.epoch = 1
    second = list(order)
    assert second != first
    assert list(EpochOrder(rows=5, blanks=0, seed=8)) == second[:5]


def test_packed_rows_train_the_same_tokens(case: Path, tmp_path: Path):
    packed = trained(
        case, tmp_path, packing=True, packing_length=512, num_train_epochs=1, per_device_train_batch_size=1,
        gradient_accumulation_steps=1, effective_batch_size=1, learning_rate=1e-9, max_grad_norm=1e9,
    )  # fmt: skip
    params = write_params(case, gradient_accumulation_steps=1, per_device_train_batch_size=32, effective_batch_size=32)
    whole = flat_loop.train(BASE, ROWS / "train.parquet", params.sft, params.quantization, stop=1)
    losses = [entry["loss"] for entry in packed.state.log_history if "loss" in entry]
    labels = [
        sum(label != -100 for place, label in enumerate(row["labels"]) if place not in starts(row))
        for row in packed.train_dataset
    ]
    order = packed.order
    order.epoch = 0
    weights = [labels[number] for number in order]
    mean = sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)
    assert mean == pytest.approx(whole["loss"][0], abs=1e-4)


def starts(row: dict) -> set[int]:
    """Places of a packed row at which a document begins."""
    places, at = set(), 0
    for length in row["seq_lengths"]:
        places.add(at)
        at += length
    return places


def test_a_loss_that_is_not_finite_names_step_rows_and_checkpoint(case: Path, tmp_path: Path):
    params = write_params(case, save_steps=1000)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    (tmp_path / "checkpoints/checkpoint-1").mkdir(parents=True)
    trainer = build_trainer(BASE, ROWS, params.sft, params.quantization, tmp_path, checkpoints)
    table = pyarrow.parquet.read_table(ROWS / "train.parquet").to_pylist()
    trainer.order.epoch = 0
    bad = [table[number] for number in list(trainer.order)[6:8]]  # second half of the second step
    marked = set(bad[0]["input_ids"][1:]) - {2}
    embed = trainer.model.get_input_embeddings().forward

    def poisoned(ids: torch.Tensor) -> torch.Tensor:
        result = embed(ids)
        return result * math.inf if marked <= set(ids.flatten().tolist()) else result

    trainer.model.get_input_embeddings().forward = poisoned
    ids = ", ".join(sorted(row["id"] for row in bad))
    message = rf"loss is nan at step 2, rows {ids}; last good checkpoint: \S*checkpoint-1"
    with pytest.raises(DataError, match=message) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


def test_a_gradient_that_is_not_finite_stops_the_run(case: Path, tmp_path: Path):
    params = write_params(case, save_steps=1000)
    trainer = build_trainer(
        BASE, ROWS, params.sft, params.quantization, tmp_path, Checkpoints(tmp_path / "checkpoints", 2)
    )
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
    weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(DataError, match=r"gradient norm is nan at step 1, rows row0-\d+, .*last good checkpoint: none"):
        trainer.train()


def test_in_fp16_a_gradient_may_overflow_until_the_scaler_is_at_one(case: Path, tmp_path: Path, monkeypatch):
    params = write_params(case, save_steps=1000)
    trainer = build_trainer(
        BASE, ROWS, params.sft, params.quantization, tmp_path, Checkpoints(tmp_path / "checkpoints", 2)
    )
    norms = iter([math.inf] * 16 + [1.0] + [math.inf] * 17)
    monkeypatch.setattr(SFTTrainer, "_clip_grad_norm", lambda self, model: torch.tensor(next(norms)))
    trainer.args.fp16 = True
    for _ in range(33):
        trainer._clip_grad_norm(trainer.model)
    with pytest.raises(DataError, match="gradient norm is inf at step 1, rows unknown"):
        trainer._clip_grad_norm(trainer.model)


def test_rows_are_found_in_padded_and_packed_batches(tmp_path: Path):
    table = rows(4, seed=3)
    write_parquet(tmp_path / "rows.parquet", table)
    ids = [row["input_ids"] for row in table.to_pylist()]
    batch = flat_loop.padded(table.to_pylist()[1:3])[0]
    assert row_ids(tmp_path / "rows.parquet", [batch], 2) == ["row3-001", "row3-002"]
    assert row_ids(tmp_path / "rows.parquet", [torch.tensor([ids[3] + ids[0]])], 2) == ["row3-000", "row3-003"]
    assert row_ids(tmp_path / "rows.parquet", [torch.tensor([[5, 5]])], 2) == ["unknown"]


def test_an_empty_training_set_is_one_line(case: Path, tmp_path: Path):
    params = write_params(case)
    write_parquet(tmp_path / "train.parquet", rows(1, seed=0).slice(0, 0))
    with pytest.raises(DataError, match=r"train\.parquet: no row to train on; see data/clean/metrics\.json"):
        check_before(BASE, tmp_path, params.sft, params.quantization)
    with pytest.raises(DataError, match=r"train\.parquet: not found; it is written by: dvc repro format"):
        check_before(BASE, tmp_path / "nowhere", params.sft, params.quantization)
    long = params.sft.model_copy(update={"packing": True, "packing_length": 16})
    with pytest.raises(ParamsError, match=r"packing_length is 16, but the longest row of .* has \d+ tokens"):
        check_before(BASE, ROWS, long, params.quantization)
    silent = rows(3, seed=0).to_pydict()
    silent["labels"] = [[-100] * len(labels) for labels in silent["labels"]]
    write_parquet(tmp_path / "train.parquet", rows(3, seed=0))
    write_parquet(tmp_path / "held_out.parquet", pyarrow.table(silent, schema=rows(3, seed=0).schema))
    with pytest.raises(DataError, match=r"held_out\.parquet: no row has a trained token"):
        check_before(BASE, tmp_path, params.sft, params.quantization)
    foreign = rows(3, seed=0).to_pydict()
    foreign["input_ids"][1][0] = 32000
    write_parquet(tmp_path / "held_out.parquet", pyarrow.table(foreign, schema=rows(3, seed=0).schema))
    with pytest.raises(DataError, match=r"held_out\.parquet: token 32000 stands in a row, but the base knows 32000:"):
        check_before(BASE, tmp_path, params.sft, params.quantization)
    with pytest.raises(ModelError, match=r"nowhere/config\.json: not found"):
        check_before(tmp_path / "nowhere", ROWS, params.sft, params.quantization)


def test_rows_begin_once_and_train_their_end(case: Path, tmp_path: Path):
    params, schema = write_params(case), rows(3, seed=0).schema
    write_parquet(tmp_path / "held_out.parquet", rows(3, seed=0))

    def check(ids: list[int], labels: list[int]) -> None:
        row = rows(1, seed=0).to_pylist()[0] | {"input_ids": ids, "labels": labels}
        write_parquet(tmp_path / "train.parquet", pyarrow.Table.from_pylist([row, row], schema=schema))
        check_before(BASE, tmp_path, params.sft, params.quantization)

    check([1, 5, 6, 2], [-100, -100, 6, 2])
    check([1, 5, 6], [-100, -100, 6])  # a template that ends its answers otherwise
    check([2, 5, 6], [-100, -100, 6])
    with pytest.raises(DataError, match=r"train\.parquet: a row begins with two begin tokens \(1\)"):
        check([1, 1, 5, 6, 2], [-100, -100, -100, 6, 2])
    with pytest.raises(DataError, match=r"train\.parquet: none of its 2 end tokens is trained"):
        check([1, 5, 6, 2], [-100, -100, 6, -100])


def test_a_target_that_matches_nothing_is_one_line(case: Path, tmp_path: Path):
    params = write_params(case)
    config = json.loads((BASE / "config.json").read_text())
    # Phi-3 has one fused projection.
    config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "vocab_size": 320, "hidden_size": 32}
    config |= {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"target_modules: k_proj matches no layer.*phi3.*qkv_proj") as caught:
        check_before(tmp_path, ROWS, params.sft, params.quantization)
    assert "\n" not in str(caught.value)


def test_one_process_trains_on_one_of_several_cards(case: Path, tmp_path: Path, monkeypatch):
    made = SFTConfig.__post_init__

    def several(self) -> None:
        made(self)
        self._n_gpu = 2

    monkeypatch.setattr(SFTConfig, "__post_init__", several)
    params = write_params(case)
    # TRL refuses a trainer of two cards, which would be one of DataParallel.
    trainer = build_trainer(
        BASE, ROWS, params.sft, params.quantization, tmp_path, Checkpoints(tmp_path / "checkpoints", 2)
    )
    assert trainer.args.n_gpu == 1


def test_the_adapter_is_on_the_disk_before_the_last_checkpoint_goes(case: Path, monkeypatch):
    params, order, remove = write_params(case), [], shutil.rmtree

    def gone(path: Path, **options: object) -> None:
        order.append(Path(path).as_posix())
        remove(path, **options)

    monkeypatch.setattr("aurora.core.files.flush", lambda path: order.append(path.as_posix()))
    monkeypatch.setattr("aurora.sft.train.shutil.rmtree", gone)
    train(BASE, ROWS, Path("flushed/adapter"), Path("flushed/out"), params.sft, params.quantization)
    last = max(at for at, path in enumerate(order) if re.fullmatch(r"\.aurora/sft/[0-9a-f]{16}", path))
    wanted = {"flushed/adapter/adapter_model.safetensors", "flushed/adapter", "flushed/out/curve.csv", "flushed"}
    assert wanted <= set(order[:last])


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a machine without a card")
@pytest.mark.parametrize(
    ("sft", "message"),
    [
        ({"optim": "paged_adamw_8bit"}, "paged_adamw_8bit pages memory of a card, and there is none"),
        ({"precision": "fp16"}, "fp16 needs a card, and there is none; set fp32 or bf16"),
    ],
)
def test_what_the_machine_lacks_is_one_line(case: Path, sft: dict, message: str):
    with pytest.raises(ParamsError, match=message):
        check_surroundings(write_params(case, **sft).sft)


def test_the_four_bit_optimiser_wants_torchao(case: Path, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_torchao_available", lambda: False)
    with pytest.raises(ParamsError, match=r"adamw_torch_4bit needs torchao.*pip install -e '\.\[torchao\]'"):
        check_surroundings(write_params(case, optim="adamw_torch_4bit").sft)


@pytest.mark.parametrize(
    ("sft", "message"),
    [
        ({"processes": 2}, r"2 x gradient_accumulation_steps 2 x processes 2 = 8; set gradient_accumulation_steps: 1"),
        ({"effective_batch_size": 3}, "make it a multiple of 2, or lower per_device_train_batch_size"),
        ({"logging_steps": 5, "save_steps": 12}, "save_steps 12 is no multiple of logging_steps 5.*set it to 15"),
        ({"accelerate_config": "two.yaml"}, "accelerate_config two.yaml names machines, but processes is 1"),
        ({"num_train_epochs": math.inf}, r"num_train_epochs: Input should be a finite number"),
        (
            {"lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "q_proj"]}},
            "'q_proj' stands twice; name it once",
        ),
    ],
)
def test_batch_and_intervals_must_agree(case: Path, sft: dict, message: str):
    with pytest.raises(ParamsError, match=message):
        write_params(case, **sft)


def test_the_curve_has_a_line_a_step_and_no_time():
    history = [
        {"step": 0, "eval_loss": 3.0},
        {"step": 5, "loss": 2.5, "learning_rate": 0.1, "grad_norm": 1.0, "tokens_per_second": 123.0},
        {"step": 5, "eval_loss": 2.25},
        {"step": 5, "train_runtime": 7.0, "train_loss": 2.5},
    ]
    assert curve(history) == "step,loss,learning_rate,grad_norm,held_out_loss\n0,,,,3\n5,2.5,0.1,1,2.25\n"


def test_the_stage_s_own_function_leaves_adapter_metrics_curve_and_no_scratch(case: Path, tmp_path: Path, capsys):
    params = write_params(case, stop_after_steps=3)
    line = train(BASE, ROWS, Path("models/adapter"), Path("out"), params.sft, params.quantization)
    assert line.startswith("sft: 3 steps, held-out loss ") and "tokens/s, peak" in line
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["steps"] == 3 and metrics["rows"] == 22
    assert metrics["trainable_parameters"] == 2 * 32 * ((32 + 32) * 2 + (32 + 16) * 2)  # r 32; q and o, k and v
    text = Path("out/curve.csv").read_text()
    assert len(text.splitlines()) == 1 + 4 and "second" not in text
    assert not list(Path(".aurora/sft").glob("*/checkpoints"))
    live = Path("dvclive/plots/metrics/train")
    names = {path.stem for path in live.glob("*.tsv")}
    assert names == {"loss", "learning_rate", "grad_norm", "tokens_per_second", "held_out_loss"}
    assert len((live / "loss.tsv").read_text().splitlines()) == 1 + 3


def test_no_value_of_the_recipe_is_left_to_trl(case: Path, tmp_path: Path):
    params = write_params(case)
    trainer = build_trainer(
        BASE, ROWS, params.sft, params.quantization, tmp_path, Checkpoints(tmp_path / "checkpoints", 2)
    )
    named = set(Sft.model_fields) & set(vars(trainer.args))
    assert len(named) > 15
    for name in named:
        assert getattr(trainer.args, name) == getattr(params.sft, name), name
    assert trainer.args.max_length is None and not trainer.aux_loss_enabled
    assert tiny_model().config.router_aux_loss_coef > 0  # which TRL would have taken
    lora = trainer.model.peft_config["default"]
    assert {name: getattr(lora, name) for name in ("r", "lora_alpha", "lora_dropout")} == {
        name: getattr(params.sft.lora, name) for name in ("r", "lora_alpha", "lora_dropout")
    }
    assert lora.target_modules == set(params.sft.lora.target_modules)
    assert issubclass(ParamsError, AuroraError)
