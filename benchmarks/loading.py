"""Loading one layer of Mixtral-8x7B's true shape, and from its bytes the model of 32 layers:

    .venv/bin/python benchmarks/loading.py [--folder SCRATCH] [--tiny]

A checkpoint of one layer, embeddings and head (3.4 GB in bfloat16, one file an expert, random weights) is written and
loaded three times, each in a process of its own: in 16 bits, in 4 bits, and from the packed copy that the second load
has kept. Peak is the process's anonymous memory above its state before, sampled each millisecond. A tensor that is kept
as the file has it stays a page of the file, which counts among the bytes held and not in the peak. The table at the end multiplies
the layer by 32 and stands beside the paper's Table 4.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch

MEASURES = ("aurora/model",)

GIB = 2**30
LAYERS = 32  # of Mixtral-8x7B
TINY = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2}
WAYS = {"16 bits": 16, "4 bits, packed on arrival": 4, "4 bits, packed copy": 4}


def write_checkpoint(folder: Path, tiny: bool) -> None:
    """A one-layer Mixtral with transformers 4's tensor names and a manifest as fetch writes it."""
    from safetensors.torch import save_file
    from transformers import MixtralConfig

    config = MixtralConfig(**(TINY if tiny else {}), num_hidden_layers=1, dtype="bfloat16")
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(folder)
    torch.manual_seed(0)
    hidden, inner, layer = config.hidden_size, config.intermediate_size, "model.layers.0"
    key = hidden // config.num_attention_heads * config.num_key_value_heads
    files = {
        f"expert-{e}": {
            f"{layer}.block_sparse_moe.experts.{e}.{w}.weight": shape
            for w, shape in {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}.items()
        }
        for e in range(config.num_local_experts)
    }
    heads = {"q": (hidden, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, hidden)}
    files["rest"] = {f"{layer}.self_attn.{p}_proj.weight": shape for p, shape in heads.items()}
    files["rest"] |= {f"{layer}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    files["rest"] |= {f"{layer}.block_sparse_moe.gate.weight": (config.num_local_experts, hidden)}
    files["rest"] |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (config.vocab_size, hidden))
    files["rest"] |= {"model.norm.weight": (hidden,)}
    listed = {}
    for file, shapes in files.items():
        tensors = {name: torch.randn(shape).mul_(0.02).bfloat16() for name, shape in shapes.items()}
        save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})
        listed |= dict.fromkeys(tensors, f"{file}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    paths = sorted(path for path in folder.iterdir())
    manifest = {"files": [{"path": path.name, "bytes": path.stat().st_size} for path in paths]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(folder: Path, bits: int, warm: Path) -> dict:
    """One load: seconds, peak, and bytes held by part of the model."""
    from aurora.model import packed_cache
    from aurora.model.folder import group_of
    from aurora.model.loading import load_model
    from aurora.model.quantization import Quantization

    settings = Quantization(bits=bits, double_quant=True, compute_dtype="bfloat16")
    load_model(warm, settings, device="cpu")  # what is imported once is no part of the peak
    packed_cache.WORTH = 0
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], anonymous_bytes())

    before = anonymous_bytes()
    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    kept, stops = packed_cache.keep, []

    def keep(*given: object) -> None:  # writing the copy is not loading
        done.set()
        stops.append(time.perf_counter())
        kept(*given)

    packed_cache.keep = keep
    model = load_model(folder, settings, device="cpu")
    seconds = (stops or [time.perf_counter()])[0] - start
    done.set()
    thread.join()
    held: dict[str, int] = {}
    for name, tensor in model.state_dict().items():  # attention's scales stand here and not among the parameters
        held[group_of(name)] = held.get(group_of(name), 0) + tensor.numel() * tensor.element_size()
    return {"seconds": seconds, "peak": peak[0] - before, "held": held}


def whole_model(held: dict[str, int]) -> str:
    """Bytes of 32 layers from the parts of one, beside the paper's figures."""
    once = ("embeddings", "head")
    sizes = {part: size * (1 if part in once else LAYERS) / GIB for part, size in held.items()}
    lines = [f"{LAYERS} layers from the bytes of one, GiB: {', '.join(f'{p} {s:.2f}' for p, s in sizes.items())}"]
    lines.append(f"{sum(sizes.values()):.2f} GiB of weights; the paper (Table 4): training 45, inference 25")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--folder", default=None, type=click.Path(path_type=Path), help="Where 5 GB may be written.")
@click.option("--tiny", is_flag=True, help="A small shape: the code path alone.")
@click.option("--threads", default=2, show_default=True)
@click.option("--load", nargs=3, default=None, hidden=True)
def main(folder: Path | None, tiny: bool, threads: int, load: tuple[str, str, str] | None) -> None:
    torch.set_num_threads(threads)
    if load:
        print(json.dumps(measure(Path(load[0]), int(load[1]), Path(load[2]))))
        return
    with TemporaryDirectory(dir=folder) as scratch:
        model, warm = Path(scratch) / "base", Path(scratch) / "warm"
        for path, small in ((model, tiny), (warm, True)):
            path.mkdir()
            write_checkpoint(path, small)
        (warm / "manifest.json").unlink()
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        print(f"checkpoint of one layer: {size / GIB:.2f} GiB")
        print(f"{'':<28}{'seconds':>9}{'peak GiB':>10}{'held GiB':>10}")
        for way, bits in WAYS.items():
            command = [sys.executable, Path(__file__).resolve(), f"--threads={threads}", "--load"]
            done = subprocess.run(
                [*command, model, str(bits), warm], cwd=scratch, check=True, capture_output=True, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            held = sum(found["held"].values())
            print(f"{way:<28}{found['seconds']:>9.1f}{found['peak'] / GIB:>10.2f}{held / GIB:>10.2f}")
        print(f"experts of the layer: {found['held']['experts']:,} bytes")
        print(whole_model(found["held"]))


if __name__ == "__main__":
    main()
