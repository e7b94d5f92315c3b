"""The ends of answers in the merged folder, and a stock `generate` that stops there."""

import json
from pathlib import Path

import pyarrow
import pytest
from stand_ins.zoo import write_base
from transformers import AutoModelForCausalLM, GenerationConfig

from aurora.core.parquet import write_parquet
from aurora.merge.ends import ends_of, write_ends


def test_the_tokenisers_end_and_that_of_the_answers_are_both_named(tmp_path: Path):
    base = write_base(tmp_path / "base", "llama", eos_token_id=9)
    rows = pyarrow.table({"labels": [[-100, 5, 7], [-100, 6, 7], [-100, 8, 8]]})
    write_parquet(tmp_path / "rows.parquet", rows)
    ends = ends_of(base, tmp_path / "rows.parquet")
    assert ends == {2, 7}
    write_ends(base, ends)
    assert GenerationConfig.from_pretrained(base).eos_token_id == [9, 2, 7]
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.generation_config.eos_token_id == [9, 2, 7]


@pytest.mark.parametrize("known", [2, [2], [2, 9]])
def test_a_file_that_names_them_keeps_its_bytes(tmp_path: Path, known):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": known}))
    before = path.read_bytes()
    write_ends(tmp_path, frozenset({2}))
    assert path.read_bytes() == before
