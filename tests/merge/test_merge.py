"""Our merge against PEFT's, interrupted, on disks of all kinds, and with every adapter or base that does not fit."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from stand_ins.tiny_mixtral import SHAPE
from transformers import MixtralConfig, MixtralForCausalLM

from aurora.core.errors import AuroraError, ModelError, ResourceError
from aurora.core.files import sha256_file
from aurora.merge import copy_bytes as copying
from aurora.merge import merge as merging
from aurora.merge.copy_bytes import ways_to_share
from aurora.merge.deltas import read_deltas
from aurora.merge.merge import merge
from aurora.model.folder import BITS, read_headers, read_shards, read_tensor_infos

ROOT = Path(__file__).parent.parent.parent
CONFIG = SHAPE | {"vocab_size": 320, "intermediate_size": 64, "num_local_experts": 4}
# Recipes beside r 4 on q and v, each in PEFT's own words.
RECIPES = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 6},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 7},
        "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 3, "o_proj": 32},
    },
    "part of the layers": {"layers_to_transform": [1], "use_rslora": True},
}


def write_adapter(base: Path, folder: Path, dtype: str = "float32", **changes: object) -> Path:
    """A PEFT adapter of `base` with random A and B, as training leaves it."""
    model = MixtralForCausalLM.from_pretrained(base, dtype="auto")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **changes}
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "magnitude" in name:
            weight.data *= 1.1
        elif "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: value.to(getattr(torch, dtype)) for name, value in load_file(file).items()}, file)
    (folder / "README.md").unlink()
    return folder


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def folders(request, tmp_path_factory) -> tuple[Path, Path]:
    """A sharded base and an adapter."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    model = MixtralForCausalLM(MixtralConfig(**CONFIG)).to(getattr(torch, request.param))
    model.save_pretrained(path / "base", max_shard_size="60KB")
    return path / "base", write_adapter(path / "base", path / "adapter")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    """As `folders`, in bfloat16 alone, for what has nothing to do with types."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small")
    MixtralForCausalLM(MixtralConfig(**CONFIG)).to(torch.bfloat16).save_pretrained(path / "base", max_shard_size="60KB")
    return path / "base", write_adapter(path / "base", path / "adapter")


@pytest.fixture
def pair(small, tmp_path: Path) -> tuple[Path, Path]:
    """Base and adapter again, to be damaged."""
    for name, folder in zip(("base", "adapter"), small, strict=True):
        shutil.copytree(folder, tmp_path / name)
    return tmp_path / "base", tmp_path / "adapter"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def assert_equal_to_peft(base: Path, adapter: Path, merged: Path, out: Path) -> None:
    model = MixtralForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    ours, theirs, before = tensors(merged), tensors(out), tensors(base)
    assert ours.keys() == theirs.keys() == before.keys()
    assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    changed = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert changed == set(read_deltas(adapter))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_tensor_equals_peft_s_merge_bit_for_bit(folders, tmp_path: Path, recipe: str, stored: str):
    base, _ = folders
    adapter = write_adapter(base, tmp_path / "adapter", stored, **RECIPES[recipe])
    metrics = merge(base, adapter, tmp_path / "merged")
    assert_equal_to_peft(base, adapter, tmp_path / "merged", tmp_path / "peft")
    assert metrics["tensors_changed"] == {"patterns": 8, "part of the layers": 2}.get(recipe, 4)
    assert metrics["shards"] > metrics["shards_changed"]


@pytest.mark.minutes
@pytest.mark.parametrize("threads", [1, 2])
def test_mixtral_s_own_attention_shapes_equal_peft_s_too(tmp_path: Path, threads: int):
    torch.manual_seed(0)
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 1}
    model = MixtralForCausalLM(MixtralConfig(**CONFIG | sizes)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="30MB")
    adapter = write_adapter(tmp_path / "base", tmp_path / "adapter", r=8, lora_alpha=16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        merge(tmp_path / "base", adapter, tmp_path / "merged")
        assert_equal_to_peft(tmp_path / "base", adapter, tmp_path / "merged", tmp_path / "peft")
    finally:
        torch.set_num_threads(before)


def test_the_sum_is_rounded_once(folders, tmp_path: Path):
    base, adapter = folders
    merge(base, adapter, tmp_path / "merged")
    before, after = tensors(base), tensors(tmp_path / "merged")
    for name, delta in read_deltas(adapter).items():
        exact = before[name].double() + delta.scale * (delta.b().double() @ delta.a().double())
        step = (after[name].double() - exact).abs() / exact.abs().clamp(min=1e-3)
        assert step.max() <= torch.finfo(before[name].dtype).eps / 2 + 1e-5  # half a unit, and float32's own sum


STOCK = """
import sys, torch
from transformers import AutoModelForCausalLM
assert not any(name.startswith("aurora") for name in sys.modules)
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32", output_loading_info=True)
assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
with torch.no_grad():
    torch.save(model(torch.arange(1, 60).view(1, -1)).logits, sys.argv[2])
"""


@pytest.mark.minutes
def test_stock_transformers_loads_it_and_gives_the_adapted_logits(small, tmp_path: Path):
    base, adapter = small
    merge(base, adapter, tmp_path / "merged")
    subprocess.run(
        [sys.executable, "-I", "-c", STOCK, tmp_path / "merged", tmp_path / "logits.pt"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    model = MixtralForCausalLM.from_pretrained(base, dtype="float32")
    with torch.no_grad():
        tokens = torch.arange(1, 60).view(1, -1)
        plain = model(tokens).logits
        tuned = PeftModel.from_pretrained(model, adapter)(tokens).logits
    # bfloat16 weights carry 8 bits; the adapter itself moves the logits ten times as far.
    assert (found - tuned).abs().max() < 0.1 * (plain - tuned).abs().max()


def test_the_folder_has_the_base_s_form(folders, tmp_path: Path):
    base, adapter = folders
    merge(base, adapter, tmp_path / "merged")
    assert read_shards(tmp_path / "merged") == read_shards(base)
    for shard in read_shards(base):
        with safe_open(base / shard, "pt") as a, safe_open(tmp_path / "merged" / shard, "pt") as b:
            assert a.metadata() == b.metadata()
            assert list(a.keys()) == list(b.keys())
    assert contents(base).keys() == contents(tmp_path / "merged").keys()


def test_another_reader_of_safetensors_finds_the_same(small, tmp_path: Path):
    gguf = pytest.importorskip("gguf.utility", reason="llama.cpp's library gguf is not installed")
    merge(*small, tmp_path / "merged")
    expected, count = tensors(tmp_path / "merged"), 0
    for file in sorted((tmp_path / "merged").glob("*.safetensors")):
        with gguf.SafetensorsLocal(file) as found:
            for name, tensor in found.items():
                assert (tensor.dtype, tensor.shape) == ("BF16", tuple(expected[name].shape))
                assert bytes(tensor.mmap_bytes()) == expected[name].view(torch.uint8).numpy().tobytes(), name
                count += 1
    assert count == len(expected)


class Experts(torch.nn.Module):
    """The experts of a layer as published checkpoints name them, so that PEFT can put LoRA on each matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        layer, block = torch.nn.Module(), torch.nn.Module()
        block.experts = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "w1": torch.nn.Linear(64, 96, False),
                    "w2": torch.nn.Linear(96, 64, False),
                    "w3": torch.nn.Linear(64, 96, False),
                }
            )
            for _ in range(4)
        )
        layer.block_sparse_moe = block
        self.model.layers = torch.nn.ModuleList([layer])


def test_lora_of_single_experts_goes_into_their_tensors_as_peft_merges_it(tmp_path: Path):
    torch.manual_seed(0)
    module = Experts().bfloat16()
    (tmp_path / "base").mkdir()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    save_file(before, tmp_path / "base/model.safetensors")
    tuned = get_peft_model(module, LoraConfig(r=4, lora_alpha=8, target_modules=["w1", "w2", "w3"]))
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    expected, found = tuned.merge_and_unload().state_dict(), tensors(tmp_path / "merged")
    assert found.keys() == expected.keys() == before.keys()
    assert len(found) == 12
    for name in found:
        assert torch.equal(found[name], expected[name]), name
        assert not torch.equal(found[name], before[name]), name


EXPERT_RECIPES = {
    "experts": {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
    "down alone": {"target_modules": [], "target_parameters": ["experts.down_proj"], "use_rslora": True},
    "router": {"target_modules": ["o_proj"], "target_parameters": ["gate.weight"]},
    "all-linear": {"target_modules": "all-linear"},
    "dora": {"target_modules": ["q_proj", "o_proj"], "use_dora": True},
    "whole head": {"modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("form", ["single", "fused"])
@pytest.mark.parametrize("recipe", EXPERT_RECIPES)
def test_every_kind_of_adapter_is_merged_as_peft_merges_it(tmp_path: Path, recipe: str, form: str):
    """In float32, where PEFT's second rounding (it rounds the delta of a parameter first) is none."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**CONFIG))
    base, out = tmp_path / "base", tmp_path / "peft"
    model.save_pretrained(base, max_shard_size="60KB", save_original_format=form == "single")
    adapter = write_adapter(base, tmp_path / "adapter", **EXPERT_RECIPES[recipe])
    merge(base, adapter, tmp_path / "merged")
    tuned = PeftModel.from_pretrained(MixtralForCausalLM.from_pretrained(base), adapter)
    tuned.merge_and_unload().save_pretrained(out, save_original_format=form == "single")
    ours, theirs, before = tensors(tmp_path / "merged"), tensors(out), tensors(base)
    assert ours.keys() == theirs.keys() == before.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    changed = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert changed == set(read_deltas(adapter, base)) == {n for n in ours if not torch.equal(theirs[n], before[n])}


# Links, copies and the disk


def test_shards_without_a_delta_are_shared_and_the_base_keeps_its_bytes(pair, tmp_path: Path, capsys):
    base, adapter = pair
    cache = tmp_path / "cache"
    base.rename(cache)  # as DVC leaves it: read-only files, symbolic links to them
    base.mkdir()
    for number, path in enumerate(sorted(cache.iterdir())):
        path.chmod(0o444)
        (base / path.name).symlink_to(path) if number % 2 else os.link(path, base / path.name)
    before = contents(base)
    metrics = merge(base, adapter, tmp_path / "merged")
    assert contents(base) == contents(cache) == before
    changed = [name for name in read_shards(base) if sha256_file(tmp_path / "merged" / name) != before[name]]
    assert len(changed) == metrics["shards_changed"]
    for path in (tmp_path / "merged").iterdir():
        assert not path.is_symlink()
        if path.name not in read_shards(base) or path.name in changed:
            assert not path.samefile(base / path.name)
            assert os.access(path, os.W_OK)
    assert contents(tmp_path / "merged").keys() == before.keys()
    clones, links = ways_to_share(base / changed[0], tmp_path / "probe")
    unchanged = [tmp_path / "merged" / name for name in read_shards(base) if name not in changed]
    if links and not clones:
        assert [path for path in unchanged if not path.samefile(cache / path.name)] == []
    if clones or links:
        log = f"{len(changed) if clones else 0} of them as reflinks), {len(unchanged)} shared with the base, 0 copied"
        assert log in capsys.readouterr().err


def test_where_nothing_can_be_shared_all_is_copied(small, tmp_path: Path, monkeypatch, capsys):
    merge(*small, tmp_path / "linked")
    for place in (merging, copying):
        monkeypatch.setattr(place, "hard_link", lambda source, target: False)
        monkeypatch.setattr(place, "reflink", lambda source, target: False)
    merge(*small, tmp_path / "copied")
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    merge(*small, tmp_path / "read_and_written")
    expected = contents(tmp_path / "linked")
    assert contents(tmp_path / "copied") == contents(tmp_path / "read_and_written") == expected
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "copied").iterdir())
    assert ", 0 copied" not in capsys.readouterr().err.splitlines()[-1]


def test_another_file_system_gets_copies(small, tmp_path: Path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to")
    out = other / f"aurora_test_{os.getpid()}"
    try:
        merge(*small, out / "merged")
        merge(*small, tmp_path / "merged")
        assert contents(out / "merged") == contents(tmp_path / "merged")
    finally:
        shutil.rmtree(out)


@pytest.mark.slow
def test_a_file_system_with_reflinks_writes_the_adapted_tensors_alone(small, tmp_path: Path, capsys):
    if os.geteuid() or not shutil.which("mkfs.btrfs"):
        pytest.skip("needs root and mkfs.btrfs to make a file system with reflinks")
    disk, mount = tmp_path / "disk", tmp_path / "mount"
    mount.mkdir()
    with disk.open("wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["mkfs.btrfs", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, mount], check=True)
    try:
        for name, folder in zip(("base", "adapter"), small, strict=True):
            shutil.copytree(folder, mount / name)
        before = contents(mount / "base")
        merge(mount / "base", mount / "adapter", mount / "merged")
        merge(*small, tmp_path / "merged")
        assert contents(mount / "merged") == contents(tmp_path / "merged")
        assert contents(mount / "base") == before
        adapted = sum(2 * delta.shape[0] * delta.shape[1] for delta in read_deltas(mount / "adapter").values())
        assert f"merge: {adapted:,} bytes written" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_disk_too_small_is_said_before_the_first_write(small, tmp_path: Path, monkeypatch):
    written = []
    monkeypatch.setattr(merging, "_take", lambda *arguments: written.append(arguments))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(ResourceError, match=r"needs 0\.00 GiB but the disk has 0\.00 GiB free; make room"):
        merge(*small, tmp_path / "out")
    assert written == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("clones", "links"), [(True, True), (False, True), (False, False)])
def test_the_disk_is_asked_for_what_cannot_be_shared_and_is_not_there_yet(
    pair, tmp_path: Path, monkeypatch, clones: bool, links: bool
):
    base, adapter = pair
    deltas, shards, take = read_deltas(adapter), read_shards(base), merging._take
    (base / "pytorch_model.bin").write_bytes(bytes(10**6))  # stays behind
    needed = {"others": sum(path.stat().st_size for path in base.glob("*.json"))}
    for shard, places in shards.items():
        adapted = sum(place.end - place.begin for name, place in places.items() if name in deltas)
        if not links or (adapted and not clones):
            needed[shard] = (base / shard).stat().st_size
        else:
            needed[shard] = adapted
    monkeypatch.setattr(merging, "ways_to_share", lambda source, probe: (clones, links))
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, free))
    taken = []

    def interrupted(source, *rest):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(source.name)
        return take(source, *rest)

    monkeypatch.setattr(merging, "_take", interrupted)
    free = sum(needed.values()) - 1
    with pytest.raises(ResourceError, match="make room first"):
        merge(base, adapter, tmp_path / "out")
    free += 1
    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, tmp_path / "out")
    free -= sum(needed[name] for name in taken)
    monkeypatch.setattr(merging, "_take", take)
    merge(base, adapter, tmp_path / "out")
    assert read_shards(tmp_path / "out").keys() == shards.keys()


def test_a_disk_that_fills_up_leaves_nothing(small, tmp_path: Path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(merging, "write_all", full)
    with pytest.raises(ResourceError, match="No space left on device; make room and run again"):
        merge(*small, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Interrupted and run again


def test_it_goes_on_after_an_interruption_at_any_shard_and_ends_in_the_same_bytes(small, tmp_path: Path, monkeypatch):
    merge(*small, tmp_path / "whole")
    expected, take = contents(tmp_path / "whole"), merging._take
    shards = len(read_shards(small[0]))
    for stop in range(0, shards, 3):
        out, taken = tmp_path / f"out{stop}", []

        def interrupted(source, *rest, stop=stop, taken=taken):
            if len(taken) == stop:
                raise KeyboardInterrupt
            taken.append(source.name)
            return take(source, *rest)

        monkeypatch.setattr(merging, "_take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            merge(*small, out)
        monkeypatch.setattr(merging, "_take", take)
        assert not out.exists()
        (scratch,) = tmp_path.glob(f".{out.name}.*.partial")
        assert sorted(path.name for path in scratch.iterdir()) == sorted(taken)
        kept = {path.name: path.stat().st_ino for path in scratch.iterdir()}
        metrics = merge(*small, out)
        assert contents(out) == expected
        assert {name: (out / name).stat().st_ino for name in kept} == kept
        assert metrics == merge(*small, tmp_path / "again")
        assert not list(tmp_path.glob(".*.partial"))


KILLED = """
import os, signal, sys
from pathlib import Path
from aurora.merge import merge as merging
left, write = int(sys.argv[4]), merging.write_all

def write_half(writer, content, at):
    global left
    left -= 1
    if left < 0:
        write(writer, content[: len(content) // 2], at)
        os.kill(os.getpid(), signal.SIGKILL)
    write(writer, content, at)

merging.write_all = write_half
merging.merge(*map(Path, sys.argv[1:4]))
"""


@pytest.mark.parametrize("failure", [ModelError("drift: no"), OSError(errno.EIO, "Input/output error", "x")])
def test_a_measure_that_fails_costs_no_merge(small, tmp_path: Path, monkeypatch, capsys, failure: Exception):
    out, metrics = (tmp_path / "out", merge(*small, tmp_path / "whole", lambda folder: {"found": 1}))
    capsys.readouterr()

    def fails(folder: Path) -> dict:
        raise failure

    kind = type(failure) if isinstance(failure, AuroraError) else ResourceError
    with pytest.raises(kind, match=r"no|Input/output error.*; what is merged is kept in .*/\.out\.") as caught:
        merge(*small, out, fails)
    assert "disk" not in str(caught.value)
    assert not out.exists()
    (scratch,) = tmp_path.glob(".out.*.partial")
    before = {path.name: path.stat().st_mtime_ns for path in scratch.glob("*.safetensors")}
    monkeypatch.setattr(merging, "_merge_shard", lambda *arguments: pytest.fail("it merged again"))
    assert merge(*small, out, lambda folder: {"found": 1}) == metrics
    shards = len(read_shards(small[0]))
    assert f"0 merged (0 of them as reflinks), 0 shared with the base, 0 copied, {shards} found whole" in (
        capsys.readouterr().err
    )
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == before
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*.partial"))


def test_what_is_kept_is_known_by_all_that_it_depends_on(pair, tmp_path: Path, monkeypatch):
    base, adapter = pair

    def fails(folder: Path) -> dict:
        raise ModelError("no")

    def key(ends: frozenset[int] = frozenset()) -> str:
        with pytest.raises(ModelError):
            merge(base, adapter, tmp_path / "out", fails, ends)
        (scratch,) = tmp_path.glob(".out.*.partial")
        return scratch.name

    keys, before = [key()], torch.get_num_threads()
    assert key() == keys[0]
    keys.append(key(frozenset([7])))
    (base / "LICENSE").write_text("Apache")
    keys.append(key())
    shard = base / next(iter(read_shards(base)))
    state, content = shard.stat(), shard.read_bytes()
    shard.rename(base / "old")
    shard.write_bytes(content)  # another file of the same size and time
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    (base / "old").unlink()
    keys.append(key())
    edit_json(adapter / "adapter_config.json", lora_alpha=9)
    keys.append(key())
    torch.set_num_threads(before + 1)
    keys.append(key())
    torch.set_num_threads(before)
    with monkeypatch.context() as patched:
        patched.setattr(merging, "code_hash", lambda *places: "another")
        keys.append(key())
    assert len(set(keys)) == len(keys)


@pytest.mark.minutes
def test_half_a_shard_is_never_taken_for_a_whole_one(small, tmp_path: Path):
    merge(*small, tmp_path / "whole")
    out = tmp_path / "out"
    for after in (0, 2):
        command = [sys.executable, "-c", KILLED, *small, out, str(after)]
        killed = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        (scratch,) = tmp_path.glob(".out.*.partial")
        assert len(list(scratch.glob("*.safetensors.partial"))) == 1
        assert not out.exists()
    (scratch / ".README.md.1.partial").write_text("half a card")
    merge(*small, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_an_interrupted_run_left_is_not_taken_under_other_inputs(pair, tmp_path: Path, monkeypatch):
    base, adapter = pair
    out = tmp_path / "out"

    def interrupt(folder: Path) -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, out, measure=interrupt)
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    write_adapter(base, adapter, r=8)
    merge(base, adapter, out)
    merge(base, adapter, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
    assert not list(tmp_path.glob(".*.partial"))
    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, out, measure=interrupt)
    (first,) = tmp_path.glob(".out.*.partial")
    monkeypatch.setattr("aurora.merge.resumable.BOOT", tmp_path / "another_boot")
    (tmp_path / "another_boot").write_text("2\n")
    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, out, measure=interrupt)
    (second,) = tmp_path.glob(".out.*.partial")
    assert first != second


def test_two_at_a_time_are_refused(small, tmp_path: Path):
    out = tmp_path / "out"

    def second(folder: Path) -> dict:
        with pytest.raises(ResourceError, match="another process is working here"):
            merge(*small, out)
        assert folder.is_dir()
        return {"measured": 1}

    assert merge(*small, out, measure=second)["measured"] == 1
    other = tmp_path / ".out.0123456789abcdef.partial"
    other.mkdir()
    descriptor = os.open(other, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ResourceError, match="another process is working here"):
        merge(*small, out)
    os.close(descriptor)
    merge(*small, out)
    assert not other.exists()


def test_a_merge_twice_gives_the_same_bytes_and_takes_the_place_of_the_first(small, tmp_path: Path):
    for name in ("one", "two"):
        merge(*small, tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    (tmp_path / "one/left.txt").write_text("of an older run")
    merge(*small, tmp_path / "one")
    assert not (tmp_path / "one/left.txt").exists()
    assert not (tmp_path / "one/README.md").exists()


@pytest.mark.parametrize("place", ["base", "base/inside", "adapter", "."])
def test_an_output_that_would_replace_its_input_is_refused(pair, tmp_path: Path, place: str):
    base, adapter = pair
    names = {"base": base, "base/inside": base / "inside", "adapter": adapter, ".": base.parent}
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    with pytest.raises(ModelError, match="name another folder to write"):
        merge(base, adapter, names[place])
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before


STAYS = """
consolidated.00.pt pytorch_model.bin optimizer.PT rng_state.pth last.ckpt state.pkl state.pickle cache.joblib
pytorch_model.bin.index.json tf_model.h5.index.json model.safetensors.index.fp16.json tf_model.h5 model.gguf
consolidated.safetensors original/consolidated.00.pth original/model.safetensors.index.json
manifest.json README.md .gitattributes .cache/left.json
"""


def test_other_weights_pickles_and_the_base_s_card_stay_behind(pair, tmp_path: Path):
    base, adapter = pair
    for name in STAYS.split():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("{}")
    (base / "LICENSE").write_text("Apache")
    (base / "templates").mkdir()
    (base / "templates/chat.jinja").write_text("{{ messages }}")
    merge(base, adapter, tmp_path / "merged")
    found = {
        path.relative_to(tmp_path / "merged").as_posix() for path in (tmp_path / "merged").rglob("*") if path.is_file()
    }
    extra = found - set(read_shards(base))
    assert extra == {
        "LICENSE",
        "templates/chat.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
    }


# What does not fit


def refused(base: Path, adapter: Path, out: Path, message: str) -> None:
    with pytest.raises(AuroraError, match=message) as caught:
        merge(base, adapter, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(out.parent.glob(".*partial*"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_adapter_that_does_not_fit_is_refused(pair, tmp_path: Path):
    base, adapter = pair
    file, out = adapter / "adapter_model.safetensors", tmp_path / "out"
    weights = load_file(file)
    name = next(name for name in weights if "lora_A" in name)
    for change, message in (
        ({name: torch.zeros(4, 32)}, "another base"),
        ({name: torch.zeros(3, 64)}, "not of rank 4"),
        ({name: torch.zeros(4, 64, 1)}, "not of rank 4"),
        ({name: torch.zeros(4, 64, dtype=torch.int32)}, "has A in I32"),
        ({name: torch.full((4, 64), float("nan"))}, "q_proj.weight: the adapter's delta is not finite"),
        ({name: torch.full((4, 64), float("inf"))}, "q_proj.weight: the adapter's delta is not finite"),
        ({"base_model.model.lm_head.weight": torch.zeros(1)}, "would be lost"),
        ({name.removeprefix("base_model.model."): torch.zeros(4, 64)}, "the same tensor named twice"),
    ):
        save_file(weights | change, file)
        refused(base, adapter, out, message)
    save_file({key.replace("layers.0", "layers.7"): value for key, value in weights.items()}, file)
    refused(base, adapter, out, r"layers\.7.* is not a tensor of")
    save_file({key: value for key, value in weights.items() if key != name}, file)
    refused(base, adapter, out, "has only LoRA B")
    save_file({}, file)
    refused(base, adapter, out, "holds no tensor")
    save_file(weights, file)
    file.write_bytes(file.read_bytes()[:-4])
    refused(base, adapter, out, r"adapter_model\.safetensors: truncated or damaged .*train again")
    file.unlink()
    refused(base, adapter, out, "no LoRA adapter")


def test_a_sum_that_the_type_cannot_hold_is_refused(tmp_path: Path):
    (tmp_path / "base").mkdir()
    save_file({"a.weight": torch.full((2, 2), 6e4, dtype=torch.float16)}, tmp_path / "base/model.safetensors")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    parts = {"A": torch.full((1, 2), 100.0), "B": torch.full((2, 1), 100.0)}
    save_file(
        {f"base_model.model.a.lora_{key}.weight": value for key, value in parts.items()},
        tmp_path / "adapter/adapter_model.safetensors",
    )
    refused(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", "together are not finite in torch.float16")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("loftq_config", {"loftq_bits": 4}),
        ("layer_replication", [[0, 2]]),
        ("a_field_of_next_year", 0.5),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(pair, tmp_path: Path, field: str, value: object):
    edit_json(pair[1] / "adapter_config.json", **{field: value})
    refused(*pair, tmp_path / "out", field)


CONFIGS = {
    "no object": "[]",
    "text": "null",
    "nested": "[" * 100_000,
    "cut off": '{"peft_type": "LORA"',
    "a number of 5,000 digits": '{"r": ' + "1" * 5000 + "}",
    "no UTF-8": b"\xff\xfe",
}
FIELDS = [
    ("peft_type", None, "peft_type: Field required"),
    ("peft_type", "LOHA", "peft_type: Input should be 'LORA', found 'LOHA'"),
    ("r", None, "r: Field required"),
    ("r", 0, "r: Input should be greater than or equal to 1, found 0"),
    ("r", -4, "r: .*found -4"),
    ("r", "4", "r: Input should be a valid integer, found '4'"),
    ("r", 4.5, "r: .*found 4.5"),
    ("r", True, "r: .*found True"),
    ("r", [4], "r: .*found .4."),
    ("lora_alpha", None, "lora_alpha: Field required"),
    ("lora_alpha", "8", "lora_alpha: Input should be a valid number, found '8'"),
    ("lora_alpha", float("nan"), "lora_alpha: Input should be a finite number"),
    ("lora_alpha", {"q_proj": 8}, "lora_alpha: "),
    ("use_rslora", "yes", "use_rslora: Input should be a valid boolean, found 'yes'"),
    ("rank_pattern", ["q_proj"], "rank_pattern: Input should be a valid dictionary"),
    ("rank_pattern", {"q_proj": 0}, "rank_pattern.q_proj: .*found 0"),
    ("rank_pattern", {"q_proj": None}, "rank_pattern.q_proj: .*found None"),
    ("rank_pattern", {"q_(proj": 4}, "rank_pattern.*: no regular expression .*unterminated"),
    ("alpha_pattern", "q_proj", "alpha_pattern: Input should be a valid dictionary"),
    ("alpha_pattern", {"*": 8}, "alpha_pattern.*: no regular expression .*nothing to repeat"),
    ("alpha_pattern", {"q_proj": "8"}, "alpha_pattern.q_proj: .*found '8'"),
    ("target_modules", 5, "target_modules.*found 5"),
    ("target_modules", [5], "target_modules.*found 5"),
    ("target_modules", {"q_proj": 1}, "target_modules"),
]


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_configuration_that_is_none_is_refused(pair, tmp_path: Path, content: str | bytes):
    path = pair[1] / "adapter_config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(*pair, tmp_path / "out", r"adapter_config\.json: .*write it again by: dvc repro -f sft")


@pytest.mark.parametrize(("field", "value", "message"), FIELDS)
def test_a_field_of_a_wrong_type_is_named_with_its_value(pair, tmp_path: Path, field, value, message):
    path = pair[1] / "adapter_config.json"
    config = json.loads(path.read_text())
    config.pop(field)
    path.write_text(json.dumps(config if value is None else config | {field: value}))
    refused(*pair, tmp_path / "out", rf"adapter_config\.json: {message}")


def trained_on(weights: str | None) -> dict:
    """A record of sft, as far as a merge reads it."""
    base = {"uri": None, "revision": None, "licence": None, "weights_sha256": weights}
    rows = {"train": "a", "held_out": "b", "sources": {"chats": 3}}
    return {"base": base, "rows": rows, "sft": {}, "quantization": {}, "versions": {}}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "whole file: .*found list"),
        (None, "whole file: .*found None"),
        ({}, "base: Field required"),
        (trained_on(None) | {"base": None}, "base: .*found None"),
        (trained_on(None) | {"base": {}}, "base.uri: Field required"),
        (trained_on(5), "base.weights_sha256: .*found 5"),
        (trained_on(None) | {"rows": []}, "rows: "),
        (trained_on(None) | {"rows": {"train": "a", "held_out": "b"}}, "rows.sources: Field required"),
        (trained_on(None) | {"sft": "x"}, "sft: .*found 'x'"),
        (trained_on(None) | {"versions": {"peft": 1}}, "versions.peft: .*found 1"),
    ],
)
def test_a_record_of_training_that_is_not_whole_is_refused(pair, tmp_path: Path, record, message: str):
    (pair[1] / "training.json").write_text(json.dumps(record))
    refused(*pair, tmp_path / "out", rf"training\.json: {message}.*; write it again by: dvc repro -f sft")


def test_another_base_is_known_by_its_recorded_hash(pair, tmp_path: Path):
    base, adapter = pair
    shard = next(iter(read_shards(base)))
    files = [{"path": shard, "sha256": "a" * 64, "bytes": 1}]
    (base / "manifest.json").write_text(json.dumps({"files": files}))
    from aurora.adapter.record import weights_hash

    (adapter / "training.json").write_text(json.dumps(trained_on(weights_hash(base))))
    merge(base, adapter, tmp_path / "merged")
    files[0]["sha256"] = "b" * 64
    (base / "manifest.json").write_text(json.dumps({"files": files}))
    refused(base, adapter, tmp_path / "out", r"trained on a base with weights [0-9a-f]{16}…, but .*base has")


def test_a_damaged_base_is_refused(pair, tmp_path: Path):
    base, adapter = pair
    out, index = tmp_path / "out", base / "model.safetensors.index.json"
    shard = sorted(base.glob("*.safetensors"))[0]
    content, listed = shard.read_bytes(), index.read_text()
    shard.write_bytes(content[:-10])
    refused(base, adapter, out, "truncated or damaged")
    shard.write_bytes(content + b"more")
    refused(base, adapter, out, "truncated or damaged")
    shard.write_bytes(content[:6])
    refused(base, adapter, out, "truncated or damaged")
    shard.unlink()
    refused(base, adapter, out, "missing, though")
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip().decode()
    twice = header[:-1] + "," + header[1:]
    shard.write_bytes(len(twice).to_bytes(8, "little") + twice.encode() + content[8 + length :])
    refused(base, adapter, out, "stands there twice")
    shard.write_bytes(content)
    edit_json(index, weight_map=json.loads(listed)["weight_map"] | {"model.none.weight": shard.name})
    refused(base, adapter, out, "model.none.weight is not in")
    edit_json(index, weight_map={"a": "../base/x.safetensors"})
    refused(base, adapter, out, "no safetensors file in the folder")
    for weight_map in ([], {}, None, "x", {"a": 5}, {"a": None}, {"a": [shard.name]}, {"a": ""}, {"a": ".."}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(base, adapter, out, "not a safetensors index")
    edit_json(index, weight_map={"a": "pytorch_model-00001-of-00002.bin"})
    refused(base, adapter, out, "which is no safetensors file in the folder")
    for content_of_index in ("[]", "{}", "[" * 100_000, '{"weight_map": ' * 100_000, "{", "\0"):
        index.write_text(content_of_index)
        refused(base, adapter, out, "not a safetensors index")
    index.write_text(listed)
    name = next(iter(load_file(shard)))
    other = sorted(base.glob("*.safetensors"))[1]
    save_file(load_file(other) | {name: load_file(shard)[name]}, other)
    refused(base, adapter, out, f"{name} is in .* and again in")
    save_file(load_file(shard), base / "model.safetensors")
    refused(base, adapter, out, "holds both model.safetensors and model.safetensors.index.json")
    (base / "model.safetensors").unlink()
    index.unlink()
    refused(base, adapter, out, "neither")


def test_a_configuration_of_the_base_that_is_none_is_refused(pair, tmp_path: Path):
    base, adapter = pair
    for value in ("x", 5, ["x"]):
        edit_json(base / "config.json", quantization_config=value)
        refused(base, adapter, tmp_path / "out", r"config\.json: quantization_config is .*, not an object")
    for content in ("[" * 100_000, "[]", "{", "\0"):
        (base / "config.json").write_text(content)
        refused(base, adapter, tmp_path / "out", r"config\.json: not (a )?JSON")
    (base / "config.json").write_text("{}")
    (base / "manifest.json").write_text('{"files": [{"path": "x.safetensors"}]}')
    refused(base, adapter, tmp_path / "out", r"manifest\.json: files\.0\.sha256: Field required")


# Headers, beside what safetensors itself takes and refuses


def with_header(path: Path, header: object, size: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


@pytest.mark.parametrize("name", sorted(BITS))
def test_every_dtype_of_safetensors_is_known_by_its_size(tmp_path: Path, name: str):
    for size in (0, BITS[name] - 1, BITS[name], BITS[name] + 1):  # bytes of eight elements
        header = {"a": {"dtype": name, "shape": [2, 4], "data_offsets": [0, size]}}
        path = with_header(tmp_path / "model.safetensors", header, size)
        if size == BITS[name]:
            with safe_open(path, "np") as file:
                assert list(file.keys()) == ["a"]
            assert read_tensor_infos(path)["a"].dtype == name
            assert read_headers(tmp_path)["a"].bytes == size
        else:
            with pytest.raises(SafetensorError):
                safe_open(path, "np").__enter__()
            with pytest.raises(ModelError, match="truncated or damaged"):
                read_tensor_infos(path)


def test_dtypes_are_those_that_safetensors_names(tmp_path: Path):
    path = with_header(tmp_path / "x", {"a": {"dtype": "?", "shape": [1], "data_offsets": [0, 1]}}, 1)
    with pytest.raises(SafetensorError) as caught:
        safe_open(path, "np").__enter__()
    assert set(re.findall(r"`(\w+)`", str(caught.value).partition("expected")[2])) == set(BITS)
    with pytest.raises(ModelError, match=r"a has the dtype \?, which safetensors does not know"):
        read_tensor_infos(path)


GOOD = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
HEADERS = [
    {"a": GOOD | {"shape": [-2, -3]}},
    {"a": GOOD | {"shape": [2.0, 3]}},
    {"a": GOOD | {"shape": ["2", "3"]}},
    {"a": GOOD | {"shape": 6}},
    {"a": GOOD | {"shape": None}},
    {"a": GOOD | {"data_offsets": [0, 12, 12]}},
    {"a": GOOD | {"data_offsets": [0.0, 12.0]}},
    {"a": GOOD | {"data_offsets": ["0", "12"]}},
    {"a": GOOD | {"data_offsets": [12, 0]}},
    {"a": GOOD | {"data_offsets": [-12, 0]}},
    {"a": GOOD | {"dtype": ["BF16"]}},
    {"a": GOOD | {"dtype": None}},
    {"a": {"dtype": "BF16", "shape": [2, 3]}},
    {"a": []},
    {"a": None},
    {"a": 5},
    {"a": "BF16"},
    [GOOD],
    "text",
    None,
    {"a": GOOD, "b": GOOD},
    b"{" * 1000,
    b'{"a":' * 100_000,
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"a": NaN}',
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_header_that_safetensors_refuses_is_refused_in_one_line(tmp_path: Path, header):
    path = with_header(tmp_path / "model.safetensors", header, 12)
    with pytest.raises(SafetensorError):
        safe_open(path, "np").__enter__()
    for read in (lambda: read_tensor_infos(path), lambda: read_headers(tmp_path), lambda: read_shards(tmp_path)):
        with pytest.raises(ModelError, match="damaged") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_quantised_base_is_refused(pair, tmp_path: Path):
    base, adapter = pair
    for method, message in (("aurora_nf4", "packed in 4 bits"), ("gptq", "already quantised by gptq")):
        edit_json(base / "config.json", quantization_config={"quant_method": method})
        refused(base, adapter, tmp_path / "out", message)
    edit_json(base / "config.json", quantization_config=None)
    name = next(iter(read_deltas(adapter)))
    shard = next(shard for shard, places in read_shards(base).items() if name in places)
    weights = load_file(base / shard)
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, base / shard)
    refused(base, adapter, tmp_path / "out", "F8_E4M3, to which nothing can be added")


PEAK = """
import sys
from pathlib import Path
from aurora.merge.merge import merge

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

before = peak()
merge(*map(Path, sys.argv[1:]))
print(peak() - before)
"""


@pytest.mark.minutes
def test_memory_is_that_of_one_tensor_and_its_delta(tmp_path: Path):
    torch.manual_seed(0)
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    side, count = 4096, 12
    save_file(
        {f"m{number}.weight": torch.zeros(side, side, dtype=torch.bfloat16) for number in range(count)},
        tmp_path / "base/model.safetensors",
    )
    parts = {
        f"base_model.model.m{number}.lora_{key}.weight": torch.randn(*shape)
        for number in range(count)
        for key, shape in (("A", (8, side)), ("B", (side, 8)))
    }
    save_file(parts, tmp_path / "adapter/adapter_model.safetensors")
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *(tmp_path / name for name in ("base", "adapter", "out"))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    tensor = side * side * 2
    # 400 MB are for torch, which is imported by the merge; the shard is twelve times its tensor.
    assert int(done.stdout) < 1.3 * (tensor + 2 * tensor) + 400e6 < count * tensor + 400e6


def write_rows(path: Path) -> None:
    rows = pyarrow.table({"input_ids": [[1, 5, 6]], "labels": [[-100, 5, 6]]})
    pyarrow.parquet.write_table(rows, path)


def test_the_stage_writes_metrics_and_can_skip_the_drift(pair, tmp_path: Path, monkeypatch):
    from click.testing import CliRunner
    from ruamel.yaml import YAML

    from stages.merge import main

    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["merge"]["drift"] = None
    write_rows(tmp_path / "held_out.parquet")
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    monkeypatch.chdir(tmp_path)
    names = {"base": "base", "adapter": "adapter", "rows": "held_out.parquet"}
    names |= {"merged": "merged", "out": "out"}
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, [word for name, path in names.items() for word in (f"--{name}", path)])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    assert "merge: 4 of 41 tensors changed" in result.stdout
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics.keys() == {"shards", "shards_changed", "tensors", "tensors_changed", "largest_delta"}
    (tmp_path / "base/config.json").unlink()
    shutil.rmtree(tmp_path / "adapter")
    result = CliRunner().invoke(main, [word for name, path in names.items() for word in (f"--{name}", path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: adapter")
    assert result.stderr.count("\n") == 1


def damage(folder: Path, kind: str) -> None:
    """One mistake in the inputs of the stage."""
    file, shard = (folder / "adapter/adapter_model.safetensors", sorted((folder / "base").glob("*.safetensors"))[0])
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    if kind == "another base":
        save_file({key: value[:, :3].clone() if "lora_A" in key else value for key, value in weights.items()}, file)
    elif kind == "no number":
        save_file(weights | {name: weights[name] / 0}, file)
    elif kind == "adapter cut off":
        file.write_bytes(file.read_bytes()[:-7])
    elif kind == "shard cut off":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif kind == "shard missing":
        shard.unlink()
    elif kind == "index":
        edit_json(folder / "base/model.safetensors.index.json", weight_map={"a.weight": shard.name})
    elif kind == "rank":
        edit_json(folder / "adapter/adapter_config.json", r=0)
    elif kind == "record":
        (folder / "adapter/training.json").write_text("[]")
    elif kind == "nested":
        (folder / "base/config.json").write_text("[" * 100_000)
    elif kind == "quantised":
        edit_json(folder / "base/config.json", quantization_config="x")
    elif kind == "rows":
        (folder / "held_out.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("another base", r"A \(4, 3\)|it was trained on another base"),
        ("no number", "is not finite"),
        ("adapter cut off", r"adapter_model\.safetensors: truncated or damaged"),
        ("shard cut off", "damaged|truncated"),
        ("shard missing", "missing, though|not found, though"),
        ("index", r"index\.json"),
        ("rank", r"adapter_config\.json: r: "),
        ("record", r"training\.json: whole file: "),
        ("nested", r"config\.json: not JSON"),
        ("quantised", "quantization_config"),
        ("rows", r"held_out\.parquet: not Parquet"),
    ],
)
def test_the_stage_says_a_mistake_in_one_line_and_leaves_nothing(
    pair, tmp_path: Path, monkeypatch, kind: str, told: str, measured: bool
):
    from click.testing import CliRunner

    from aurora.merge.params import Drift, Merge
    from aurora.model.quantization import Quantization
    from stages import merge as stage

    write_rows(tmp_path / "held_out.parquet")
    damage(tmp_path, kind)
    drift = Drift(rows=1, positions=2, merged_bits=(16,)) if measured else None
    sections = {
        "merge": Merge(threads=torch.get_num_threads(), drift=drift),
        "quantization": Quantization(bits=16, double_quant=True, compute_dtype="float32"),
    }
    monkeypatch.setattr(stage, "read_section", lambda key, kind: sections[key])
    monkeypatch.chdir(tmp_path)
    names = {"base": "base", "adapter": "adapter", "rows": "held_out.parquet"}
    names |= {"merged": "models/merged", "out": "data/merge"}
    result = CliRunner().invoke(stage.main, [word for name, path in names.items() for word in (f"--{name}", path)])
    assert result.exit_code == 1, result.output
    line = result.stderr.splitlines()[-1]
    assert re.match(rf"error: .*({told})", line)
    assert not [text for text in result.stderr.splitlines()[:-1] if "rror" in text]
    assert result.stdout == ""
    assert not list((tmp_path / "models").iterdir()) if (tmp_path / "models").exists() else True
    assert not (tmp_path / "data").exists()
