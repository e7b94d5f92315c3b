"""The merge stage's work beside plain cp of the same folder, and beside PEFT's merge of a smaller one:

    .venv/bin/python benchmarks/merge.py --folder SCRATCH [--layers 3] [--rounds 3] [--peft-layers 1]

The checkpoint has Mixtral-8x7B's shapes in bfloat16, a shard a layer and one for embeddings and head (9.3 GB in four
shards at three layers); the adapter is r 8 on q_proj and v_proj, so that every shard but one must be rewritten. cp
and merge take turns; the files of the base are read once before. `written` counts to the end of a sync. ResumeCache is the
peak resident set of a process of its own, above that of a bare interpreter.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click

MEASURES = ("aurora/merge",)

HIDDEN, INNER, EXPERTS, KEYS, RANK = 4096, 14336, 8, 1024, 8
CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
PROJECTIONS = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (KEYS, HIDDEN),
    "v_proj": (KEYS, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
}
PEAK = "print('peak', next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
OURS = (
    "import sys; from pathlib import Path; from aurora.merge.merge import merge; merge(*map(Path, sys.argv[1:])); "
    + PEAK
)
PEFT = (
    """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype='auto')
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
    + PEAK
)


def random_tensor(*shape: int):
    """bfloat16, a block of random numbers over and over: the contents do not matter, and they take long to make."""
    import torch

    block = torch.randn(min(2**20, shape[0] * shape[-1]), generator=torch.Generator().manual_seed(0)) * 0.02
    count = torch.Size(shape).numel()
    return block.bfloat16().repeat(-(-count // len(block)))[:count].view(shape)


def write_base(folder: Path, layers: int) -> None:
    """A checkpoint in the names of transformers 4, as Mixtral is published."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    files: dict[str, dict[str, tuple[int, ...]]] = {"embed": {"model.embed_tokens.weight": (32000, HIDDEN)}}
    files["embed"] |= {"lm_head.weight": (32000, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        tensors = {f"{name}.self_attn.{part}.weight": shape for part, shape in PROJECTIONS.items()}
        tensors |= {f"{name}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        tensors[f"{name}.block_sparse_moe.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            place = f"{name}.block_sparse_moe.experts.{expert}"
            tensors |= {f"{place}.w1.weight": (INNER, HIDDEN), f"{place}.w3.weight": (INNER, HIDDEN)}
            tensors[f"{place}.w2.weight"] = (HIDDEN, INNER)
        files[f"layer{layer}"] = tensors
    weight_map = {}
    for number, tensors in enumerate(files.values(), start=1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file({name: random_tensor(*shape) for name, shape in tensors.items()}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))


def write_adapter(folder: Path, layers: int) -> None:
    """A PEFT folder: r 8, alpha 16, q_proj and v_proj."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tensors = {}
    for layer in range(layers):
        for part in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, PROJECTIONS[part][1]) * 0.05
            tensors[f"{name}.lora_B.weight"] = torch.randn(PROJECTIONS[part][0], RANK) * 0.05
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "v_proj"]}))


def measure(command: list[str], out: Path) -> dict:
    """Seconds until the command ends and until all is on the disk, peak MB it printed, bytes that are its own."""
    os.sync()
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ended = time.perf_counter()
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    os.sync()
    written = time.perf_counter()
    peak = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak")]
    own = sum(path.stat().st_size for path in out.iterdir() if path.stat().st_nlink == 1)
    shutil.rmtree(out)
    return {
        "seconds": ended - start,
        "written": written - start,
        "peak": peak[0] * 1024 / 1e6 if peak else 0,
        "own": own,
    }


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def compare(folder: Path, layers: int, ways: dict[str, list[str]], rounds: int) -> None:
    """Makes a checkpoint, runs each way in turn, prints a line each."""
    base, adapter = folder / "base", folder / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    write_base(base, layers)
    write_adapter(adapter, layers)
    interpreter = (
        int(subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout.split()[1])
        * 1024
        / 1e6
    )
    total = size(base)
    for path in base.iterdir():
        with path.open("rb") as file:
            while file.read(2**26):
                pass
    runs: dict[str, list[dict]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, command in ways.items():
            out = folder / "out"
            runs[name].append(
                measure(
                    [*command[:-1], *(str(p) for p in ((base, adapter, out) if command[-1] == "all" else (base, out)))],
                    out,
                )
            )
    shutil.rmtree(folder)
    print(f"{total / 1e9:.2f} GB in {layers + 1} shards, {rounds} rounds in turn, medians")
    print(
        f"{'':<24}{'seconds':>9}{'written':>9}{'MB/s':>8}{'of cp':>8}{'written':>9}{'GB own':>8}{'peak MB over interpreter':>26}"
    )
    cp = runs[next(iter(ways))]
    for name, found in runs.items():
        middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
        ratio, ratio_written = (
            statistics.median(a[key] / b[key] for a, b in zip(cp, found, strict=True)) for key in ("seconds", "written")
        )
        peak = f"{middle['peak'] - interpreter:.0f}" if middle["peak"] else ""
        print(
            f"{name:<24}{middle['seconds']:>9.2f}{middle['written']:>9.2f}{total / middle['seconds'] / 1e6:>8.0f}"
            f"{ratio:>7.2f}x{ratio_written:>8.2f}x{middle['own'] / 1e9:>8.2f}{peak:>26}"
        )


@click.command(help=__doc__)
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Where to write; is emptied.")
@click.option("--layers", default=3, show_default=True, help="Of the checkpoint beside cp.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--peft-layers", default=1, show_default=True, help="Of the checkpoint beside PEFT; 0 leaves it out.")
def main(folder: Path, layers: int, rounds: int, peft_layers: int) -> None:
    python = [sys.executable, "-c"]
    ways = {"cp -r": ["cp", "-r", "two"], "aurora": [*python, OURS, "all"]}
    folder = folder / "merge_benchmark"
    compare(folder, layers, ways, rounds)
    pair = HIDDEN * HIDDEN * (2 + 4) / 1e6
    print(
        f"largest adapted tensor in bfloat16 and its delta in float32: {pair:.0f} MB; 1.3 x that + 400 MB = {1.3 * pair + 400:.0f} MB\n"
    )
    if peft_layers:
        compare(folder, peft_layers, ways | {"PEFT merge_and_unload": [*python, PEFT, "all"]}, 1)


if __name__ == "__main__":
    main()
