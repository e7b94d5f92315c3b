"""The ends of answers in the merged folder, and a stock `generate` that stops there."""

import json
from pathlib import Path

import pyarrow
import pytest
import torch
from peft import LoraConfig, get_peft_model
from stand_ins.zoo import write_base
from transformers import AutoModelForCausalLM, GenerationConfig

from aurora.core.parquet import write_parquet
from aurora.eval.replies import end_tokens, generate
from aurora.merge.ends import ends_of, write_ends
from aurora.merge.merge import merge
from aurora.model.loading import load_tokenizer


def test_the_tokenisers_end_and_that_of_the_answers_are_both_named(tmp_path: Path):
    base = write_base(tmp_path / "base", "llama", eos_token_id=9)
    labels = pyarrow.table({"labels": [[-100, 5, 7], [-100, 6, 7], [-100, 8, 8]]})
    write_parquet(tmp_path / "rows.parquet", labels)
    ends = ends_of(base, tmp_path / "rows.parquet")
    assert ends == {2, 7}
    write_ends(base, ends)
    assert GenerationConfig.from_pretrained(base).eos_token_id == [9, 2, 7]
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.generation_config.eos_token_id == [9, 2, 7]


@pytest.mark.parametrize("known", [9, [9, 11]], ids=["one end", "several ends"])
def test_a_stock_generate_of_the_merged_folder_ends_where_answers_were_trained_to_end(tmp_path: Path, known):
    """The base ends in 9, its tokeniser in 2, and the answers in what the adapted model writes fourth."""
    base = write_base(tmp_path / "base", "llama", eos_token_id=known)
    torch.manual_seed(0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()  # fmt: skip
    adapted.save_pretrained(tmp_path / "adapter")
    asked = torch.tensor([[1, 20, 30, 40]])
    told = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "attention_mask": torch.ones_like(asked)}
    said = adapted.generate(input_ids=asked, **told)[0].tolist()[4:]
    assert len(said) == 12 and said[3] not in said[:3]
    write_parquet(tmp_path / "rows.parquet", pyarrow.table({"labels": [[-100, 5, said[3]]] * 3}))
    merge(base, tmp_path / "adapter", tmp_path / "merged", ends=ends_of(base, tmp_path / "rows.parquet"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert model.generate(asked, **told)[0].tolist()[4:] == said[:4]
    ends = end_tokens(model, load_tokenizer(tmp_path / "merged"))
    assert ends == {2, said[3], *(known if isinstance(known, list) else [known])}
    assert generate(model, asked.tolist(), 12, ends) == [said[:3]]


@pytest.mark.parametrize("known", [2, [2], [2, 9]])
def test_a_file_that_names_them_keeps_its_bytes(tmp_path: Path, known):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": known}))
    before = path.read_bytes()
    write_ends(tmp_path, frozenset({2}))
    assert path.read_bytes() == before
