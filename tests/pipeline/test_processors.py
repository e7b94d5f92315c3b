"""The same bytes on another processor: every stage that adds up floating-point numbers, native and emulated."""

import hashlib
import shutil
from pathlib import Path

import pytest
from stand_ins.stage_runs import ROOT, fetch, read_yaml, stages, write_params

SUMMING = ("sft", "merge", "eval@tuned")  # and fetch, of the base
HASWELL = ("qemu-x86_64", "-cpu", "Haswell-v4")  # AVX2 and no AVX-512, of another maker than many servers


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that the stages have written."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for top in ("data", "models")
        for path in sorted((folder / top).rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_emulated_processor_gives_the_same_bytes(tmp_path: Path):
    if shutil.which(HASWELL[0]) is None:
        pytest.skip("qemu-x86_64 is not installed (Debian: qemu-user)")
    params = read_yaml(ROOT / "params.yaml")
    params["format"]["held_out"] = 0.03  # emulation is some twenty times slower
    params["sft"] |= {"stop_after_steps": 2, "eval_steps": 1000}
    params["sft"] |= {"per_device_train_batch_size": 2, "effective_batch_size": 2}
    params["eval"]["tasks"] = {name: {"num_fewshot": 5, "limit": 2} for name in params["eval"]["tasks"]}
    params["eval"] |= {"loss_rows": 8, "replies": {"prompts": 4, "max_new_tokens": 6, "batch_size": 4}}
    native, emulated = tmp_path / "native", tmp_path / "emulated"
    native.mkdir()
    shutil.copytree(ROOT / "samples", native / "samples")
    write_params(native, params)
    fetch(native, params, *(name for name in params["sources"] if name != "base"))
    fetch(native, params, "base")
    stages(native, "clean", "format")
    shutil.copytree(native, emulated)
    shutil.rmtree(emulated / "data/raw/model")
    stages(native, *SUMMING)
    fetch(emulated, params, "base", under=HASWELL)
    stages(emulated, *SUMMING, under=HASWELL)
    assert hashes(emulated) == hashes(native)
