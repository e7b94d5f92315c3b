"""Every kind of base through sft, merge and eval, as a tiny random model, beside stock transformers, PEFT and lm-eval.

docs/bases.md is written from what happens here.
"""

import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from stand_ins.tiny_mixtral import DENSE, NF4
from stand_ins.training_case import rows, write_params
from stand_ins.zoo import ARCHITECTURES, write_base
from transformers import AutoModelForCausalLM, PreTrainedModel

from aurora.core.errors import AuroraError
from aurora.core.files import write_json
from aurora.core.parquet import write_parquet
from aurora.eval.held_out import held_out_loss
from aurora.eval.prefix import PrefixLM
from aurora.eval.replies import generate
from aurora.merge.ends import ends_of
from aurora.merge.merge import merge
from aurora.model.experts import fused_tensors
from aurora.model.folder import meta_model
from aurora.model.loading import load_model, load_tokenizer
from aurora.model.nf4 import PackedExperts
from aurora.sft.train import check_before, train

DOCUMENT = Path(__file__).parents[2] / "docs/bases.md"
WORKS = "works"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "dense", "q_b_proj", "kv_b_proj")
found: dict[str, dict[str, str]] = {}  # model_type -> column -> "works" or the refusal


def dequantised(packed: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """transformers' own model, its experts eager, with the weights that the packed one stands for."""
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if any(fused_tensors(dense)):
        dense.set_experts_implementation("eager")
    for name, module in packed.named_modules():
        if isinstance(module, PackedExperts):
            weight = torch.stack([module.dense(expert) for expert in range(module.shape[0])])
            dense.get_parameter(name).data = weight
        elif isinstance(module, Linear4bit):
            weight = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
            dense.get_parameter(f"{name}.weight").data = weight
    return dense


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_same_logits(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Logits of both models are near; their spread is about 1."""
    torch.testing.assert_close(one(tokens()).logits, other(tokens()).logits, rtol=1e-4, atol=2e-4)


def experts_of(folder: Path) -> list[str]:
    """Leaf names of the fused experts."""
    parameters = meta_model(folder).named_parameters()
    return sorted({name.rpartition(".")[2] for name, tensor in parameters if tensor.dim() == 3 and "experts." in name})


def attention_of(folder: Path) -> list[str]:
    names = {name.rpartition(".")[2] for name, _ in meta_model(folder).named_modules()}
    return sorted(names & set(ATTENTION))


def train_adapter(folder: Path, bits: int, **lora: object) -> None:
    """The sft stage's own functions: two steps on random rows."""
    params = write_params(folder, stop_after_steps=2, num_train_epochs=1, eval_steps=2, warmup_steps=0)
    settings = {"target_modules": tuple(attention_of(Path("base"))), **lora}
    sft = params.sft.model_copy(update={"lora": params.sft.lora.model_copy(update=settings)})
    sft = type(sft).model_validate(sft.model_dump())
    quantization = NF4.model_copy(update={"bits": bits})
    check_before(Path("base"), Path("rows"), sft, quantization)
    train(Path("base"), Path("rows"), Path("adapter"), Path("out"), sft, quantization)


def assert_merged_is_peft_s() -> None:
    merge(Path("base"), Path("adapter"), Path("merged"), ends=ends_of(Path("base"), Path("rows/held_out.parquet")))
    stock = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(stock, "adapter").eval()
    with torch.no_grad():
        before = adapted(tokens()).logits
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(tokens()).logits, before, atol=1e-4)  # it has learned something
    merged = load_model(Path("merged"), DENSE, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens()).logits, before, rtol=1e-4, atol=2e-4)
    assert_same_logits(merged, adapted.merge_and_unload())


def assert_scores_are_lm_eval_s(folder: Path) -> None:
    """Log-probabilities beside lm-eval's hf model, held-out loss and greedy replies beside stock transformers."""
    model, tokenizer = load_model(folder, DENSE, device="cpu"), load_tokenizer(folder)
    texts = [
        "One.\nTwo.\nAnswer:",
        "One.\nTwo.\nThree, and more than that.\nAnswer:",
        "Four\nFive words are here.\nAnswer:",
    ]
    requests = [
        Instance("loglikelihood", {}, (text, f" {letter}"), number)
        for number, text in enumerate(texts)
        for letter in "ABCD"
    ]
    stock = HFLM(model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32")
    expected = stock.loglikelihood(requests, disable_tqdm=True)
    ours = PrefixLM(model, tokenizer=tokenizer, batch_tokens=64).loglikelihood(requests, disable_tqdm=True)
    for (value, greedy), (wanted, wanted_greedy) in zip(ours, expected, strict=True):
        assert value == pytest.approx(wanted, abs=2e-4) and greedy == wanted_greedy
    held_out = rows(5, seed=1).to_pylist()
    total = count = 0
    with torch.no_grad():
        for row in held_out:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
            logits = model(ids, use_cache=False).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    for batch_tokens in (16, 4096):
        loss = held_out_loss(model, Path("rows/held_out.parquet"), None, batch_tokens)
        assert loss == pytest.approx(total / count, abs=1e-5)
    prompts = [row["input_ids"][:6] for row in held_out[:2]] + [held_out[2]["input_ids"][:13]]
    replies = generate(model, prompts, 12, frozenset({2}))
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=2
        )[0, len(prompt) :].tolist()
        assert reply == (whole[: whole.index(2)] if 2 in whole else whole)


def attempt(work) -> str:
    """ "works", or the refusal in one line."""
    try:
        work()
    except AuroraError as error:
        assert "\n" not in str(error)
        return str(error).removeprefix("base: ")
    return WORKS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_base_goes_through_sft_merge_and_eval(kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_base(Path("base"), kind)
    write_json(Path("base/manifest.json"), {"source": "base"})
    for name, table in (("train", rows(8, seed=0)), ("held_out", rows(5, seed=1))):
        write_parquet(Path("rows") / f"{name}.parquet", table)
    cells = found.setdefault(kind, {})

    def packed() -> None:
        model = load_model(Path("base"), NF4, device="cpu")
        assert_same_logits(model, dequantised(model, Path("base")))

    cells["4 bits"] = attempt(packed)
    bits = 4 if cells["4 bits"] == WORKS else 16
    experts = experts_of(Path("base"))

    def tuned(**lora: object) -> None:
        for left in ("adapter", "merged", "out"):
            shutil.rmtree(left, ignore_errors=True)
        train_adapter(tmp_path, bits, **lora)
        assert_merged_is_peft_s()

    cells["LoRA, merged"] = attempt(tuned)
    cells["on experts"] = attempt(lambda: tuned(target_parameters=tuple(experts))) if experts else "has none"
    cells["all-linear"] = attempt(lambda: tuned(target_modules="all-linear"))
    cells["scores"] = attempt(lambda: assert_scores_are_lm_eval_s(Path("base")))
    assert cells["LoRA, merged"] == cells["scores"] == WORKS
    assert cells["on experts"] in (WORKS, "has none")


def document() -> str:
    """docs/bases.md."""
    columns = ["4 bits", "LoRA, merged", "on experts", "all-linear", "scores"]
    notes: list[str] = []

    def cell(text: str) -> str:
        if text in (WORKS, "has none"):
            return text
        if text not in notes:
            notes.append(text)
        return f"refused ({notes.index(text) + 1})"

    lines = [f"| {' | '.join(['model_type', *columns])} |", "|" + "---|" * (len(columns) + 1)]
    for kind in ARCHITECTURES:
        lines.append(f"| {' | '.join([kind, *(cell(found[kind][column]) for column in columns)])} |")
    head = """# Bases

Written by `tests/model/test_bases.py`, which takes a tiny random model of each kind through sft, merge and eval.

- **4 bits**: the packed model gives the logits of transformers' own with the dequantised weights.
- **LoRA, merged**: an adapter on attention, trained by sft (in 4 bits where that works, else in 16), put on the dense base
  by stock PEFT gives the logits of the folder that merge writes, and of PEFT's own merge.
- **on experts**: the same with `sft.lora.target_parameters` on the fused experts.
- **all-linear**: the same with `sft.lora.target_modules: all-linear`.
- **scores**: log-probabilities of lm-eval's `hf` model, and held-out loss and greedy replies of stock transformers.
"""
    refusals = [f"{number}. `{note}`" for number, note in enumerate(notes, start=1)]
    return (
        "\n".join(
            [head, *lines, "", *(["Refusals, before anything is loaded:", "", *refusals] if notes else [])]
        ).rstrip()
        + "\n"
    )


@pytest.mark.slow
def test_the_table_is_written():
    if set(found) != set(ARCHITECTURES):
        pytest.skip("the table is written by a run of all bases")
    assert len(found) >= 24
    before = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.is_file() else None
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document(), encoding="utf-8")
    assert before == document(), f"{DOCUMENT} was out of date; it is written anew"
