"""Mixtral experts in NF4, three ways, and LoRA on experts, two ways, on whatever device there is:

    .venv/bin/python benchmarks/experts.py [--hidden 4096 --intermediate 14336] [--layers 2] [--tokens 512]

ours           aurora.model.experts: each expert packed by itself, dequantised where a token was routed to it
parametrised   bitsandbytes.nn.parametrize on the fused tensors, and transformers' grouped_mm
linear4bit     one Linear4bit per expert matrix in a loop: the layout of transformers 4
ours+lora      aurora.lora on ours: rank 8 on both tensors, two products a row
peft+lora      PEFT's target_parameters on dense experts, and transformers' grouped_mm

Training is forward and backward through gradient checkpointing; decoding is one token at a time. They run in
turn in each round, and the ratios are medians over the rounds. Peak memory is that of a process that holds one of
them alone, weights and activations, above its state before.
"""

import json
import operator
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MEASURES = ("aurora/model/experts.py", "aurora/model/nf4.py", "aurora/lora")

GROUPS = {"ours": ("ours", "parametrised", "linear4bit"), "ours+lora": ("ours+lora", "peft+lora")}
WAYS = tuple(way for ways in GROUPS.values() for way in ways)
RANK = 8
EXPERTS, TOP = 8, 2


class ExpertLoop(nn.Module):
    """The experts of transformers 4.57 (MixtralSparseMoeBlock), each matrix a Linear4bit."""

    def __init__(self, hidden: int, inner: int, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        shapes = {"w1": (hidden, inner), "w2": (inner, hidden), "w3": (hidden, inner)}
        self.experts = nn.ModuleList(
            nn.ModuleDict({name: linear4bit(*shape, device, dtype) for name, shape in shapes.items()})
            for _ in range(EXPERTS)
        )

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(hidden)
        mask = nn.functional.one_hot(index, EXPERTS).permute(2, 1, 0)
        for expert in mask.sum(dim=(-1, -2)).nonzero().flatten().tolist():
            layers = self.experts[expert]
            place, token = torch.where(mask[expert])
            rows = hidden[token]
            rows = layers["w2"](nn.functional.silu(layers["w1"](rows)) * layers["w3"](rows))
            result.index_add_(0, token, (rows * weights[token, place, None]).to(result.dtype))
        return result


def linear4bit(inputs: int, outputs: int, device: str, dtype: torch.dtype) -> nn.Module:
    """A packed random matrix; bitsandbytes packs it on its way to the device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        layer = Linear4bit(inputs, outputs, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4")
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype) * 0.02
    layer.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer)
    layer.weight._quantize(device)
    layer.support_avx512bf16_for_cpu = False
    return layer


def build(way: str, hidden: int, inner: int, device: str, dtype: torch.dtype) -> nn.Module:
    """One layer's experts with random weights; no two dense layers exist at a time."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    from aurora.lora.attach import LoraPackedExperts
    from aurora.lora.targets import Target
    from aurora.model.experts import IMPLEMENTATION, replace
    from aurora.model.nf4 import PackedExperts
    from aurora.model.packing import register

    if way == "linear4bit":
        return ExpertLoop(hidden, inner, device, dtype)
    register()
    config = MixtralConfig(hidden_size=hidden, intermediate_size=inner)
    ours = way.startswith("ours")
    config._experts_implementation = IMPLEMENTATION if ours else "grouped_mm"
    with torch.device("meta"):
        experts = MixtralExperts(config)
    for name in ("gate_up_proj", "down_proj"):
        shape = tuple(getattr(experts, name).shape)
        if ours:
            packed = PackedExperts(shape, True, dtype, device)
            for expert in range(EXPERTS):
                packed.put(expert, [torch.randn(shape[1:], device=device, dtype=dtype) * 0.02])
            replace(experts, name, packed)
            if way == "ours+lora":
                target = Target(name, name, RANK, 2.0, EXPERTS, is_parameter=True)
                setattr(experts, name, LoraPackedExperts(packed, target, transposed=False))
        else:
            weight = torch.randn(shape, device=device, dtype=dtype).mul_(0.02)
            setattr(experts, name, nn.Parameter(weight, requires_grad=False))
            del weight
            if way == "parametrised":
                replace_parameter_4bit(experts, name, compress_statistics=True, quant_type="nf4")
    if way == "peft+lora":
        names = ["experts.gate_up_proj", "experts.down_proj"]
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=[], target_parameters=names)
        return inject_adapter_in_model(lora, nn.ModuleDict({"experts": experts}))["experts"]
    return experts


class Bench:
    """A stack of layers and the two things to do with it."""

    def __init__(self, way: str, options: dict) -> None:
        self.device, self.tokens = options["device"], options["tokens"]
        self.dtype = getattr(torch, options["dtype"])
        torch.manual_seed(0)
        sizes = (options["hidden"], options["intermediate"])
        self.layers = [build(way, *sizes, self.device, self.dtype).eval() for _ in range(options["layers"])]
        self.hidden = options["hidden"]

    def _rows(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(tokens)
        hidden = torch.randn(tokens, self.hidden, generator=generator).to(self.device, self.dtype)
        weights, index = torch.randn(tokens, EXPERTS, generator=generator).softmax(-1).topk(TOP)
        return hidden, index.to(self.device), weights.to(self.device)

    def train(self) -> None:
        """Forward and backward of all layers, each checkpointed."""
        hidden, index, weights = self._rows(self.tokens)
        hidden.requires_grad_()
        state = hidden
        for layer in self.layers:
            state = state + checkpoint(layer, state, index, weights, use_reentrant=False)
        state.float().sum().backward()
        self.wait()

    @torch.no_grad()
    def decode(self) -> None:
        """Eight single tokens, one after another."""
        hidden, index, weights = self._rows(8)
        for token in range(8):
            part = slice(token, token + 1)
            state = hidden[part]
            for layer in self.layers:
                state = state + layer(state, index[part], weights[part])
        self.wait()

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def peak_bytes(way: str, options: dict) -> int:
    """Peak while training and decoding, with the weights, above the state before they were made."""
    if options["device"] != "cpu":
        bench = Bench(way, options)
        torch.cuda.reset_peak_memory_stats()
        bench.train()
        bench.decode()
        return torch.cuda.max_memory_allocated()
    Bench(way, {**options, "hidden": 64, "intermediate": 64}).train()  # whatever is imported or started once
    before = anonymous_bytes()
    bench = Bench(way, options)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    bench.train()
    bench.decode()
    done.set()
    thread.join()
    return peak[0] - before


def table(options: dict, times: dict, peaks: dict) -> str:
    """Speeds of the best round, and ratios of ours to each other way."""
    lines = [f"{options['layers']} layers, hidden {options['hidden']}, intermediate {options['intermediate']}, "]
    lines[0] += f"{EXPERTS} experts, {options['tokens']} tokens, {options['dtype']}, {options['device']}"
    lines.append(
        f"{'':<14}{'train tokens/s':>16}{'ours':>8}{'decode tokens/s':>18}{'ours':>8}{'peak MiB':>11}{'ours':>8}"
    )
    for ours, ways in GROUPS.items():
        for way in ways:
            cells = f"{way:<14}"
            for kind, count, width in (("train", options["tokens"], 16), ("decode", 8, 18)):
                pairs = zip(times[ours, kind], times[way, kind], strict=True)
                ratio = statistics.median(other / mine for mine, other in pairs)
                cells += f"{count / min(times[way, kind]):>{width}.1f}{ratio:>7.2f}x"
            lines.append(f"{cells}{peaks[way] / 2**20:>11.0f}{peaks[ours] / peaks[way]:>7.2f}x")
    lines.append("ours: speed of ours (with LoRA: of ours+lora) against this row, its memory as a share of this row")
    return "\n".join(lines)


def values(times: dict, peaks: dict) -> dict[str, dict[str, float]]:
    """By way: how many times as long it takes as ours, in the median of the rounds, and its peak memory."""
    return {
        way: {
            f"{kind}_time": round(statistics.median(map(operator.truediv, times[way, kind], times[ours, kind])), 3)
            for kind in ("train", "decode")
        }
        | {"peak_mib": round(peaks[way] / 2**20)}
        for ours, ways in GROUPS.items()
        for way in ways
    }


@click.command(help=__doc__)
@click.option("--hidden", default=None, type=int, help="4096 on a card, 512 on a CPU.")
@click.option("--intermediate", default=None, type=int, help="14336 on a card, 1792 on a CPU.")
@click.option("--layers", default=2, show_default=True)
@click.option("--tokens", default=None, type=int, help="2048 on a card, 512 on a CPU.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--dtype", default=None, type=click.Choice(["float32", "bfloat16"]))
@click.option("--peak-of", default=None, type=click.Choice(WAYS), hidden=True)
def main(rounds: int, threads: int, peak_of: str | None, **options: object) -> None:
    card = torch.cuda.is_available()
    defaults = {"hidden": (4096, 512), "intermediate": (14336, 1792), "tokens": (2048, 512)}
    defaults |= {"dtype": ("bfloat16", "float32")}
    for name, (on_card, on_cpu) in defaults.items():
        options[name] = options[name] or (on_card if card else on_cpu)
    options["device"] = "cuda" if card else "cpu"
    torch.set_num_threads(threads)
    if peak_of:
        print(json.dumps(peak_bytes(peak_of, options)))
        return
    given = [f"--{name}={options[name]}" for name in ("hidden", "intermediate", "layers", "tokens", "dtype")]
    peaks = {}
    for way in WAYS:
        command = [sys.executable, __file__, *given, f"--threads={threads}", f"--peak-of={way}"]
        peaks[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    benches = {way: Bench(way, options) for way in WAYS}
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for way, bench in benches.items():
            for kind, work in (("train", bench.train), ("decode", bench.decode)):
                taken = seconds(work)
                if turn:  # the first round warms up
                    times.setdefault((way, kind), []).append(taken)
    print(table(options, times, peaks))
    print(json.dumps(values(times, peaks)))


if __name__ == "__main__":
    main()
