"""The record of a training is the same for every build of the same versions."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from aurora.pipeline.params import load_params
from aurora.sft.record import training_record


def test_a_library_s_version_is_without_its_build(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("train", "held_out"):
        pyarrow.parquet.write_table(pyarrow.table({"source": ["a", "b", "a"]}), tmp_path / f"{name}.parquet")
    params = load_params(root / "params.yaml")
    monkeypatch.setattr("aurora.core.declared.version", lambda name: "2.13.0+cu130")
    record = training_record(tmp_path, tmp_path, params.sft, params.quantization)
    assert set(record["versions"].values()) == {"2.13.0"}
    assert {"torch", "trl", "peft"} <= record["versions"].keys()
    assert record["rows"]["sources"] == {"a": 2, "b": 1}
