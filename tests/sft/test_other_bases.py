"""What sft refuses of other bases before it loads them, and what it goes on from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stand_ins.tiny_mixtral import NF4
from stand_ins.training_case import rows, write_case, write_params
from stand_ins.zoo import write_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from aurora.adapter.record import hub_address, read_record
from aurora.core.errors import ModelError, ParamsError
from aurora.core.files import sha256_file, write_json
from aurora.core.parquet import write_parquet
from aurora.sft.checkpoints import Checkpoints
from aurora.sft.params import Sft, StartFrom
from aurora.sft.start import start_folder
from aurora.sft.train import build_trainer, check_before, train

pytestmark = pytest.mark.minutes


@pytest.fixture
def case(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("it loaded"))
    for name, seed in (("train", 0), ("held_out", 1)):
        write_parquet(Path("rows") / f"{name}.parquet", rows(8, seed=seed))
    return tmp_path


def changed(sft: Sft, lora: dict | None = None, **changes: object) -> Sft:
    content = sft.model_dump() | changes
    return Sft.model_validate(content | {"lora": content["lora"] | (lora or {})})


REFUSALS = [
    ("llama", {"router_aux_loss_coef": 0.1}, {}, "llama gives no load-balancing loss; set 0.0"),
    ("deepseek_v3", {"router_aux_loss_coef": 0.1}, {"target_modules": ("o_proj",)}, "gives no load-balancing loss"),
    ("jamba", {"packing": True}, {}, "recurrent layers of a jamba .* set false"),
    ("qwen3_next", {"packing": True}, {}, "recurrent layers of a qwen3_next"),
    ("jamba", {}, {"target_modules": "all-linear"}, "mamba.in_proj belongs to a module that reads its weight"),
    ("llama4_text", {}, {}, "outside transformers' experts interface"),
    (
        "llama",
        {},
        {"target_parameters": ("gate_up_proj",)},
        "gate_up_proj matches no parameter .* fused experts are none",
    ),
    (
        "mixtral",
        {},
        {"target_modules": "all-linear", "lora_dropout": 0.1},
        "knows no dropout; set sft.lora.lora_dropout",
    ),
]


@pytest.mark.parametrize(
    ("kind", "sft", "lora", "told"), REFUSALS, ids=[f"{kind} {told[:20]}" for kind, _, _, told in REFUSALS]
)
def test_what_a_base_cannot_do_is_one_line_before_it_loads(case, kind, sft, lora, told):
    write_base(Path("base"), kind)
    params = changed(write_params(case).sft, lora, **sft)
    with pytest.raises((ModelError, ParamsError), match=told) as caught:
        check_before(Path("base"), Path("rows"), params, NF4)
    assert "\n" not in str(caught.value)


def test_whole_modules_that_share_weights_are_refused(case):
    write_base(Path("base"), "llama", tie_word_embeddings=True)
    params = changed(write_params(case).sft, {"modules_to_save": ("lm_head",)})
    with pytest.raises(ModelError, match="embeddings and head of this llama share their weights"):
        check_before(Path("base"), Path("rows"), params, NF4)


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ({"target_parameters": ("gate_up_proj",), "use_dora": True}, "neither dropout nor DoRA"),
        ({"target_parameters": ("gate_up_proj",), "lora_dropout": 0.1}, "neither dropout nor DoRA"),
        ({"target_modules": ()}, "both empty"),
        ({"target_modules": ("lm_head",)}, "list it under modules_to_save"),
        ({"target_modules": ("q_proj", "q_proj")}, "stands twice"),
    ],
)
def test_parts_of_lora_must_agree(case, lora, told):
    with pytest.raises(ValueError, match=told):
        changed(write_params(case).sft, lora)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_warms_up(tmp_path, monkeypatch, schedule):
    monkeypatch.chdir(write_case(tmp_path))
    params = write_params(tmp_path, lr_scheduler_type=schedule, warmup_steps=4)
    trainer = build_trainer(
        Path("base"), Path("rows"), params.sft, params.quantization, tmp_path, Checkpoints(tmp_path / "c", 2)
    )
    trainer.create_optimizer_and_scheduler(12)
    rates = []
    for _ in range(6):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[:5] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])


def test_a_base_from_the_hub_is_named_as_peft_finds_it(tmp_path):
    commit = "ad44e777bcd18fa416d9da3bd8f70d33ebb85d39"
    for uri, found in ((f"hf://Qwen/Qwen3-8B@{commit}", ("Qwen/Qwen3-8B", commit)), ("embedded:small_base", None)):
        write_json(tmp_path / "manifest.json", {"uri": uri, "revision": commit if found else None})
        assert hub_address(tmp_path) == found


def test_training_goes_on_from_an_adapter_and_its_record_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(write_case(tmp_path))
    lora = {"target_parameters": ["gate_up_proj", "down_proj"], "target_modules": ["q_proj"], "r": 2}
    params = write_params(tmp_path, stop_after_steps=2, eval_steps=2)
    address = {"uri": f"hf://owner/tiny@{'a' * 40}", "revision": "a" * 40}
    write_json(Path("base/manifest.json"), {"source": "base"} | address)
    first = changed(
        params.sft, {**lora, "target_parameters": tuple(lora["target_parameters"]), "target_modules": ("q_proj",)}
    )
    train(Path("base"), Path("rows"), Path("first"), Path("out"), first, params.quantization)
    digest = sha256_file(Path("first/adapter_model.safetensors"))
    second = changed(first, None, start_from={"adapter": "first", "rev": None, "sha256": digest}, learning_rate=1e-9)
    check_before(Path("base"), Path("rows"), second, params.quantization)
    train(Path("base"), Path("rows"), Path("second"), Path("out"), second, params.quantization)
    before, after = (load_file(f"{name}/adapter_model.safetensors") for name in ("first", "second"))
    assert before.keys() == after.keys() and any("experts.base_layer.lora_A" in name for name in before)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)  # at this rate it stays where it began
    record = read_record(Path("second"))
    assert record["start_from"]["sha256"] == digest
    assert record["start_from"]["record"]["sft"]["learning_rate"] == first.learning_rate
    config = json.loads(Path("second/adapter_config.json").read_text())
    assert config["target_parameters"] == ["down_proj", "gate_up_proj"]
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/tiny", "a" * 40)
    assert AutoTokenizer.from_pretrained("second").eos_token == "</s>"
    wrong = changed(second, None, start_from={"adapter": "first", "rev": None, "sha256": "0" * 64})
    with pytest.raises(ParamsError, match=r"sft.start_from.sha256: .* write this one"):
        check_before(Path("base"), Path("rows"), wrong, params.quantization)
    other = changed(second, {"r": 4})
    with pytest.raises(ParamsError, match=r"sft.lora.r is 4, but first has 2"):
        check_before(Path("base"), Path("rows"), other, params.quantization)


def test_an_adapter_of_another_commit_comes_out_of_dvc(tmp_path, monkeypatch):
    from dvc.repo import Repo
    from dvc.scm import Git

    monkeypatch.chdir(tmp_path)
    git = Git.init(str(tmp_path))
    digests = []
    with Repo.init(str(tmp_path)) as repo:
        for content in (b"first", b"second"):
            Path("models/adapter").mkdir(parents=True, exist_ok=True)
            Path("models/adapter/adapter_model.safetensors").write_bytes(content)
            Path("models/adapter/adapter_config.json").write_bytes(b"{}" + content)
            digests.append(sha256_file(Path("models/adapter/adapter_model.safetensors")))
            repo.add("models/adapter")
            git.add([".dvc", ".dvcignore", "models/adapter.dvc", "models/.gitignore"])
            git.commit(content.decode())
    revisions = [commit.hexsha for commit in map(git.resolve_commit, ("HEAD~1", "HEAD"))]
    for content, revision, digest in zip((b"first", b"second"), revisions, digests, strict=True):
        folder = start_folder(StartFrom(adapter="models/adapter", rev=revision, sha256=digest))
        assert folder != Path("models/adapter") and (folder / "adapter_config.json").read_bytes() == b"{}" + content
    asked = StartFrom(adapter="models/adapter", rev=revisions[0], sha256=digests[1])
    shutil.rmtree(".aurora")
    with pytest.raises(ParamsError, match=f"sft.start_from.sha256: .* has {digests[0]}; write this one"):
        start_folder(asked)
    shutil.rmtree(".aurora")
    shutil.rmtree(".dvc/cache")
    for asked in (
        StartFrom(adapter="models/adapter", rev=revisions[0], sha256=digests[0]),
        StartFrom(adapter="models/adapter", rev="no-such-commit", sha256=digests[0]),
        StartFrom(adapter="models/none", rev=revisions[0], sha256=digests[0]),
    ):
        with pytest.raises(ModelError, match=r"sft.start_from: .* cannot be read \(.*run dvc pull") as caught:
            start_folder(asked)
        assert "\n" not in str(caught.value)
        assert not list(Path(".aurora").rglob("*.safetensors"))
