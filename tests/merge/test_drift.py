"""Drift against an independent computation, one model at a time, and what cannot be measured."""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from stand_ins.tiny_mixtral import DENSE, NF4, SHAPE
from stand_ins.zoo import write_base
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

import aurora.merge.streaming
import aurora.model.loading
from aurora.core.errors import DataError, ModelError, ResourceError
from aurora.merge.drift import compare, drift, logits, read_samples, require_room
from aurora.merge.merge import merge
from aurora.merge.params import Drift
from aurora.merge.streaming import streamed_logits
from aurora.model.loading import load_model
from aurora.model.quantization import Quantization

pytestmark = pytest.mark.minutes

ROOT = Path(__file__).parent.parent.parent
SETTINGS = Drift(rows=3, positions=5, merged_bits=(16, 4))
SMALL = SHAPE | {"vocab_size": 96, "intermediate_size": 64, "num_local_experts": 4, "initializer_range": 0.2}
ROWS = [
    ([1, 5, 6, 7, 8, 9, 10, 2], [-100, -100, -100, 7, 8, 9, 10, 2]),
    ([1, 40, 41, 42, 43, 44, 45, 46, 47, 2], [-100, 40, 41, 42, 43, 44, 45, 46, 47, 2]),
    ([1, 2, 3], [-100, -100, -100]),
    ([1, 2, 3], [1, 2, 3]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Base, adapter, merged model and held-out rows."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("drift")
    config = MixtralConfig(**SMALL)
    model = MixtralForCausalLM(config)
    model.save_pretrained(path / "base")
    tuned = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    )
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    tuned.save_pretrained(path / "adapter")
    merge(path / "base", path / "adapter", path / "merged")
    ids, labels = zip(*ROWS, strict=True)
    table = pyarrow.table({"input_ids": list(ids), "labels": list(labels)})
    pyarrow.parquet.write_table(table, path / "held_out.parquet")
    return {name: path / name for name in ("base", "adapter", "merged", "held_out.parquet")}


def measure(folders: dict[str, Path], settings: Drift, quantization: Quantization) -> dict:
    places = (folders[name] for name in ("base", "adapter", "merged", "held_out.parquet"))
    return drift(*places, settings, quantization)


def test_positions_are_those_that_foresee_an_answer(folders):
    samples = read_samples(folders["held_out.parquet"], SETTINGS)
    assert samples == [([1, 5, 6, 7, 8, 9, 10], [2, 3, 4, 5, 6]), ([1, 40, 41, 42, 43], [0, 1, 2, 3, 4])]
    everything = Drift(rows=4, positions=100, merged_bits=(16,))
    assert read_samples(folders["held_out.parquet"], everything)[2] == ([1, 2], [0, 1])


def test_the_measures_are_torch_s_own():
    torch.manual_seed(0)
    wanted, found = torch.randn(2, 7, 50) * 3, torch.randn(2, 7, 50) * 3
    result = compare(list(wanted), iter(found))
    kl = torch.nn.functional.kl_div(
        found.view(-1, 50).log_softmax(-1), wanted.view(-1, 50).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert result["kl_divergence"] == pytest.approx(kl.item(), rel=1e-5)
    assert result["max_abs"] == pytest.approx((wanted - found).abs().max().item())
    assert result["mean"] == pytest.approx((wanted - found).abs().mean().item(), rel=1e-5)
    assert result["top1_agreement"] == (wanted.argmax(-1) == found.argmax(-1)).float().mean().item()
    assert compare(list(wanted), iter(wanted))["top1_agreement"] == 1


def test_drift_is_what_peft_and_stock_transformers_find(folders):
    found = measure(folders, SETTINGS, DENSE)
    base = MixtralForCausalLM.from_pretrained(folders["base"])
    merged = MixtralForCausalLM.from_pretrained(folders["merged"], dtype="bfloat16")
    tuned = PeftModel.from_pretrained(MixtralForCausalLM.from_pretrained(folders["base"]), folders["adapter"])
    differences, effects = [], []
    with torch.no_grad():
        for tokens, places in read_samples(folders["held_out.parquet"], SETTINGS):
            ids = torch.tensor([tokens])
            wanted = tuned(ids).logits[0, places]
            differences.append((wanted - merged(ids).logits[0, places].float()).abs())
            effects.append((wanted - base(ids).logits[0, places]).abs())
    assert (found["rows"], found["positions"]) == (2, 10)
    for name, values, tolerance in (("adapter_effect", effects, 1e-4), ("merged_16_bits", differences, 0.1)):
        expected = torch.cat(values)
        # bfloat16 sums in another order move single logits by a unit in the last place.
        assert found[name]["max_abs"] == pytest.approx(expected.max().item(), rel=tolerance)
        assert found[name]["mean"] == pytest.approx(expected.mean().item(), rel=tolerance)
    assert found["merged_16_bits"]["kl_divergence"] < 0.1 * found["adapter_effect"]["kl_divergence"]


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_other_bases_are_measured_in_4_bits_too(folders, tmp_path: Path, kind: str):
    """The default merged_bits, 16 and 4, on a dense base and on another mixture of experts."""
    places = {name: tmp_path / name for name in ("base", "adapter", "merged")}
    places["held_out.parquet"] = folders["held_out.parquet"]
    model = AutoModelForCausalLM.from_pretrained(write_base(places["base"], kind))
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, lora).eval()
    tuned.save_pretrained(places["adapter"])
    merge(places["base"], places["adapter"], places["merged"])
    found = measure(places, SETTINGS, DENSE)
    merged = load_model(places["merged"], NF4, device="cpu")
    with torch.no_grad():
        values = [
            (tuned(input_ids=torch.tensor([ids])).logits - merged(torch.tensor([ids])).logits)[0, at].abs()
            for ids, at in read_samples(places["held_out.parquet"], SETTINGS)
        ]
    assert found["merged_4_bits"]["max_abs"] == pytest.approx(torch.cat(values).max().item(), rel=1e-3)
    assert found["merged_16_bits"]["max_abs"] < 0.5 * found["merged_4_bits"]["max_abs"]


def test_an_adapter_that_changes_nothing_does_not_drift_in_the_same_bits(folders, tmp_path: Path):
    weights = load_file(folders["adapter"] / "adapter_model.safetensors")
    zero = {name: value * 0 if "lora_B" in name else value for name, value in weights.items()}
    (tmp_path / "adapter").mkdir()
    save_file(zero, tmp_path / "adapter/adapter_model.safetensors")
    config = json.loads((folders["adapter"] / "adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    merge(folders["base"], tmp_path / "adapter", tmp_path / "merged")
    places = folders | {name: tmp_path / name for name in ("adapter", "merged")}
    found = measure(places, SETTINGS, NF4)
    nothing = {"max_abs": 0, "mean": 0, "kl_divergence": 0, "top1_agreement": 1}
    assert found["adapter_effect"] == found["merged_4_bits"] == nothing
    assert found["merged_16_bits"]["max_abs"] > 0  # the base in 4 bits is not the base in 16


@pytest.mark.parametrize("tied", [False, True])
def test_layer_by_layer_gives_the_bits_of_the_whole_model(tmp_path: Path, folders, tied: bool):
    torch.manual_seed(0)
    config = MixtralConfig(**SMALL | {"num_hidden_layers": 3, "tie_word_embeddings": tied})
    MixtralForCausalLM(config).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    samples = read_samples(folders["held_out.parquet"], SETTINGS)
    model = aurora.model.loading.load_model(
        tmp_path / "model", Quantization(bits=16, double_quant=True, compute_dtype="float32")
    )
    found = streamed_logits(tmp_path / "model", samples, "cpu")
    expected = list(logits(model, samples, "whole"))
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True, True]


def test_one_model_or_layer_is_in_memory_at_a_time(folders, monkeypatch):
    loaded = []

    def watched(load):
        def run(*arguments):
            gc.collect()
            assert [model for model in loaded if model() is not None] == []
            model = load(*arguments)
            loaded.append(weakref.ref(model))
            return model

        return run

    monkeypatch.setattr(aurora.model.loading, "load_model", watched(aurora.model.loading.load_model))
    monkeypatch.setattr(aurora.merge.streaming, "_one_layer", watched(aurora.merge.streaming._one_layer))
    assert measure(folders, SETTINGS, NF4) == measure(folders, SETTINGS, NF4)
    assert len(loaded) == 2 * (1 + 2 + 1)  # base, two layers, merged in 4 bits


PEAK = """
import sys
from pathlib import Path
from aurora.merge.streaming import streamed_logits
streamed_logits(Path(sys.argv[1]), [([1, 2, 3], [1, 2])], "cpu")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def test_twelve_layers_take_no_more_memory_than_three(tmp_path: Path):
    peaks = []
    for layers in (3, 12):
        torch.manual_seed(0)
        sizes = {"hidden_size": 512, "intermediate_size": 2560, "num_hidden_layers": layers}
        model = MixtralForCausalLM(MixtralConfig(**SMALL | sizes)).to(torch.bfloat16)
        model.save_pretrained(tmp_path / "model", max_shard_size="50MB")
        layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters()) * 2
        done = subprocess.run(
            [sys.executable, "-c", PEAK, tmp_path / "model"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) * 1024)
        shutil.rmtree(tmp_path / "model")
    assert layer > 30e6
    assert peaks[1] - peaks[0] < layer  # though nine more went through


def test_what_cannot_run_here_is_told_before_the_merge(folders, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(aurora.model.loading, "free_memory", lambda device: 300_000)
    require_room(folders["base"], folders["adapter"], SETTINGS, NF4)
    with pytest.raises(ResourceError, match="loading in 32 bits takes"):
        require_room(folders["base"], folders["adapter"], SETTINGS, DENSE)
    write_base(tmp_path, "gemma2")  # which runs whole in 16 bits
    with pytest.raises(ResourceError, match="loading in 16 bits takes"):
        require_room(tmp_path, folders["adapter"], SETTINGS, NF4)


def copied_adapter(folders: dict[str, Path], path: Path, **changes: object) -> Path:
    shutil.copytree(folders["adapter"], path)
    config = path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj"]}, r"layers\.0\.self_attn\.v_proj has no target_modules but a tensor"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "o_proj has target_modules .* but no tensor"),
        ({"layers_to_transform": [0]}, r"layers\.1\.self_attn\.q_proj has no target_modules but a tensor"),
        ({"target_modules": ["nothing"]}, "PEFT does not load it .*or set merge.drift: null"),
        ({"target_modules": []}, "PEFT does not load it"),
        ({"target_modules": "("}, "PEFT does not load it"),
        ({"target_modules": None, "task_type": "NONE"}, "PEFT does not load it"),
        ({"layers_to_transform": "x"}, "PEFT does not load it"),
        ({"modules_to_save": ["lm_head"]}, "lm_head has target_modules or modules_to_save .* but no tensor"),
    ],
)
def test_an_adapter_that_peft_would_put_elsewhere_is_told_before_the_merge(
    folders, tmp_path: Path, changes: dict, message: str
):
    adapter = copied_adapter(folders, tmp_path / "adapter", **changes)
    with pytest.raises(ModelError, match=message) as caught:
        require_room(folders["base"], adapter, SETTINGS, NF4)
    assert "\n" not in str(caught.value)
    require_room(folders["base"], folders["adapter"], SETTINGS, NF4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_no_number_of_drift(value: float):
    sound, broken = [torch.zeros(3, 5)], [torch.zeros(3, 5)]
    broken[0][1, 2] = value
    with pytest.raises(ModelError, match="a logit of the model beside it is not finite"):
        compare(sound, broken)
    with pytest.raises(ModelError, match="a logit of the adapter on the base is not finite"):
        compare(broken, sound)


def test_rows_without_answers_are_refused(tmp_path: Path):
    table = pyarrow.table({"input_ids": [[1, 2, 3]], "labels": [[-100, -100, -100]]})
    pyarrow.parquet.write_table(table, tmp_path / "held_out.parquet")
    with pytest.raises(DataError, match="no row has a trained token, so there is no drift"):
        read_samples(tmp_path / "held_out.parquet", SETTINGS)
    pyarrow.parquet.write_table(table.drop_columns("labels"), tmp_path / "held_out.parquet")
    with pytest.raises(DataError, match=r"column labels is missing, found input_ids; .* -f format"):
        read_samples(tmp_path / "held_out.parquet", SETTINGS)
