"""A kept packed copy: bit-identical, never another model's, whole or not there at all, and bounded in disk."""

import fcntl
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from aurora.core.files import sha256_file
from aurora.model import packed_cache as module
from aurora.model.loading import load_model
from aurora.model.packed_cache import keep, place_of
from aurora.model.quantization import Quantization

NF4 = Quantization(bits=4, double_quant=True, compute_dtype="float32")
SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}


def write_manifest(folder: Path) -> None:
    """As fetch writes it."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = [
        {"path": path.name, "sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    ]
    (folder / "manifest.json").write_text(json.dumps({"source": "base", "files": files}))


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A fetched base; the cache lies below a folder of the test's own and takes models of any size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "WORTH", 0)
    torch.manual_seed(0)
    folder = Path("base")
    MixtralForCausalLM(MixtralConfig(**SIZES, **HEADS)).to(torch.bfloat16).save_pretrained(
        folder, max_shard_size="100KB"
    )
    write_manifest(folder)
    return folder


def copies() -> list[Path]:
    return sorted(path for path in module.CACHE.iterdir() if path.name != ".lock")


def sources_of(monkeypatch) -> list[Path]:
    """The folders that transformers is asked to load from now on."""
    seen: list[Path] = []
    original = AutoModelForCausalLM.from_pretrained

    def load(folder, *args, **options):
        seen.append(Path(folder))
        return original(folder, *args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    return seen


def same(one, two) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_load_reads_the_packed_copy_and_gets_the_same_bits(base, monkeypatch, capsys):
    seen = sources_of(monkeypatch)
    first = load_model(base, NF4, device="cpu")
    assert "packed copy kept" in capsys.readouterr().err
    second = load_model(base, NF4, device="cpu")
    (copy,) = copies()
    assert seen == [base, copy] and same(first, second)
    assert {path.suffix for path in copy.iterdir()} == {".json", ".safetensors"}
    packed, dense = (sum(f.stat().st_size for f in d.glob("*.safetensors")) for d in (copy, base))
    assert packed < 0.6 * dense


def change_weight(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("manifest", [True, False])
def test_another_models_copy_is_never_taken(base, monkeypatch, manifest):
    """One bit of one weight differs, be the manifest renewed or not; no more than one copy is kept."""
    load_model(base, NF4, device="cpu")
    change_weight(base)
    if manifest:
        write_manifest(base)
    seen = sources_of(monkeypatch)
    changed = load_model(base, NF4, device="cpu")
    assert seen == [base] and len(copies()) == 1
    assert same(changed, load_model(base, NF4, device="cpu")) and seen[1:] == copies()


def test_another_folder_of_the_same_name_has_its_own(base, tmp_path):
    place = place_of(base, NF4, "cpu")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(base, "elsewhere/base")
    assert place_of(Path("elsewhere/base"), NF4, "cpu") not in (place, None)


def test_the_settings_the_device_and_the_code_are_part_of_the_key(base, monkeypatch):
    places = {place_of(base, NF4, "cpu"), place_of(base, NF4, "cuda:0")}
    places |= {place_of(base, NF4.model_copy(update=change), "cpu") for change in ({"double_quant": False},)}
    places.add(place_of(base, NF4.model_copy(update={"compute_dtype": "bfloat16"}), "cpu"))
    monkeypatch.setattr(module, "version", lambda name: "another")
    places.add(place_of(base, NF4, "cpu"))
    assert len(places) == 5 and None not in places
    assert place_of(base, NF4, "cuda:1") == place_of(base, NF4, "cuda:0")


def test_what_has_no_copy(base, monkeypatch):
    assert place_of(base, NF4.model_copy(update={"bits": 16}), "cpu") is None
    load_model(base, NF4, device="cpu")
    assert place_of(copies()[0], NF4, "cpu") is None
    monkeypatch.setattr(module, "WORTH", 2**30)
    assert place_of(base, NF4, "cpu") is None  # too small to be worth it
    monkeypatch.setattr(module, "WORTH", 0)
    shutil.copyfile(next(base.glob("*.safetensors")), base / "stray.safetensors")
    assert place_of(base, NF4, "cpu") is None  # not described by its manifest
    (base / "stray.safetensors").unlink()
    (base / "manifest.json").write_text("{")
    assert place_of(base, NF4, "cpu") is None
    (base / "manifest.json").unlink()
    assert place_of(base, NF4, "cpu") is None  # as a merged model


@pytest.mark.parametrize("damage", ["cut off", "lost", "no config"])
def test_a_damaged_copy_is_packed_again(base, monkeypatch, damage):
    first = load_model(base, NF4, device="cpu")
    (copy,) = copies()
    shard = next(copy.glob("*.safetensors"))
    if damage == "cut off":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "lost":
        shard.unlink()
    else:
        (copy / "config.json").unlink()
    seen = sources_of(monkeypatch)
    assert same(first, load_model(base, NF4, device="cpu")) and seen == [base]
    assert same(first, load_model(base, NF4, device="cpu")) and seen == [base, copy]


def test_a_failed_writer_leaves_nothing_and_does_not_stop_the_stage(base, monkeypatch, capsys):
    place = place_of(base, NF4, "cpu")
    rest = place.parent / f".{place.name}.12345.partial"  # of one that was killed
    rest.mkdir(parents=True)
    (rest / "model.safetensors").write_bytes(b"half")

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aurora.model.packing.save_file", full)
    assert load_model(base, NF4, device="cpu") is not None
    assert copies() == [] and "no packed copy kept" in capsys.readouterr().err


def test_only_one_process_writes_and_never_onto_a_full_disk(base, monkeypatch, capsys):
    model = load_model(base, NF4, device="cpu")
    place = place_of(base, NF4, "cpu")
    shutil.rmtree(place)
    monkeypatch.setenv("RANK", "1")
    keep(model, place)
    monkeypatch.setenv("RANK", "0")
    with open(place.parent / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        keep(model, place)
    assert copies() == []
    capsys.readouterr()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=module.SPARE))
    keep(model, place)
    told = capsys.readouterr().err
    assert copies() == [] and told.count("\n") == 1 and "no packed copy kept" in told
