"""The embedded base: weights of the repository as a Hugging Face folder, and the script that makes them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, MixtralForCausalLM

from aurora import small_base
from aurora.core.errors import SourceError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "base"
    small_base.build(path)
    return path


def test_it_is_a_mixtral_that_transformers_loads_whole(folder: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(model, MixtralForCausalLM)
    config = model.config
    assert (config.vocab_size, config.num_local_experts, config.num_experts_per_tok) == (32000, 8, 2)
    assert config.num_key_value_heads < config.num_attention_heads
    assert len(list(folder.glob("*.safetensors"))) >= 3


def test_tokens_of_the_world_have_their_rows_and_all_others_one(folder: Path) -> None:
    kept = safetensors.torch.load_file(small_base.WEIGHTS)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for name, other in ((small_base.HEAD, kept[small_base.OTHERS]), (small_base.EMBEDDING, None)):
        table = safetensors.torch.load_file(folder / index[name])[name]
        tokens = kept[small_base.TOKENS]
        assert torch.equal(table[tokens], kept[name])
        rest = torch.ones(len(table), dtype=torch.bool).index_fill(0, tokens, False)
        assert (table[rest] == (0 if other is None else other)).all()


def test_the_weights_are_small_and_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = small_base.WEIGHTS.read_bytes()
    assert len(content) <= 12_000_000
    assert hashlib.sha256(content).hexdigest() == small_base.SHA256
    monkeypatch.setattr(small_base, "WEIGHTS", tmp_path / "weights.safetensors")
    small_base.WEIGHTS.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SourceError, match=r"expected sha256 .*git checkout aurora/small_base"):
        small_base.build(tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_script_makes_the_same_bytes(root: Path, tmp_path: Path) -> None:
    program = f"""
import miniature.train as train
from pathlib import Path
train.WEIGHTS, train.HERE = Path({str(tmp_path)!r}) / "weights.safetensors", Path({str(tmp_path)!r})
train.main()
"""
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
    for name in ("weights.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (root / "aurora/small_base" / name).read_bytes()
