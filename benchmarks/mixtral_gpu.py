"""Mixtral-8x7B's true shape on one card: memory and speed of training and inference, beside what was predicted.

    python benchmarks/mixtral_gpu.py              # one CUDA card of 80 GB, under 8 minutes
    python benchmarks/mixtral_gpu.py --tiny       # the same code on a small shape, on a CPU too: no figure of its own

benchmarks/card.sh runs it on a bare machine and lists the wheels. torchao gives the paper's 4-bit optimiser; without it
adamw_torch_fused stands in, for 3.4 million LoRA weights. No model weights are needed: random ones of the true shape are
packed on the card, one expert at a time, and run through the stage's own path (aurora.sft.train, be_deterministic and
build_trainer) in the settings of profiles/paper.yaml and profiles/paper-fast.yaml.

Printed as it goes, and with --record kept after each step, so that a cut-off run still tells what it has measured; after LAST
seconds it cuts itself off:
  the card      bfloat16 product and copy speed, measured here
  NF4           whether the card packs and unpacks to the bits of a CPU
  training      GiB (paper, Table 4: 45), tokens/s, share of the time in dequantising experts; whether a second run gives
                the same bytes
  inference     GiB (paper, Table 4: 25), prompt and new tokens/s
  peers         the experts of one layer, forward, beside grouped-nf4-gemm's kernel on the same bits, where that is installed
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import click
import torch
from records import RECORDS, ROOT, write_record

MEASURES = ("aurora/model", "aurora/sft")

GIB = 2**30
BUDGET = 390  # seconds after which no further measurement begins
LAST = 465  # seconds after which the script ends wherever it is; 480 are allowed
# Name of the prediction, rows, tokens of a row, compute type, whether packed; in order of worth.
RUNS = (
    ("train packed 8,192", 1, 8192, "bfloat16", True),
    ("train 2 x 1,024", 2, 1024, "bfloat16", False),
    ("train 8 x 1,024", 8, 1024, "bfloat16", False),
    ("train packed 16,384", 1, 16384, "bfloat16", True),
    ("train 2 x 1,024, fp16", 2, 1024, "float16", False),
)
STEPS = 4  # micro-batches measured, after one that warms up
DOCUMENT = 512  # tokens of a document in packed rows
TINY = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}


PREDICTIONS = ROOT / RECORDS / "card_predictions.json"


def say(text: str) -> None:
    print(text, flush=True)


def end_in_time() -> None:
    """Ends the process after LAST seconds, whatever it is doing."""

    def end() -> None:
        say(f"cut off after {LAST} s; what stands above was measured")
        os._exit(1)

    timer = threading.Timer(LAST, end)
    timer.daemon = True
    timer.start()


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def random_model(config, quantization, device: str):
    """A model as `load_model` would return it, with random weights that were never in memory together."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import MixtralForCausalLM

    from aurora.model.experts import fused_tensors, replace
    from aurora.model.fused import fuse
    from aurora.model.nf4 import PackedExperts
    from aurora.model.packing import PackingConfig, PackingQuantizer, register

    register()
    dtype = getattr(torch, quantization.compute_dtype)
    settings = PackingConfig(quantization.double_quant, quantization.compute_dtype)
    quantizer = PackingQuantizer(settings, pre_quantized=False)
    with torch.device("meta"):
        model = MixtralForCausalLM(config).to(dtype)
    model.hf_quantizer = quantizer
    quantizer.preprocess_model(model, device_map={"": device})
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).mul_(0.02).to(dtype)

    for _, module, name in list(fused_tensors(model)):
        shape = tuple(getattr(module, name).shape)
        packed = PackedExperts(shape, quantization.double_quant, dtype, device)
        for expert in range(shape[0]):
            packed.put(expert, [random(*shape[1:])])
        replace(module, name, packed)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight = random(module.out_features, module.in_features)
            options = {"compress_statistics": quantization.double_quant, "quant_type": "nf4", "module": module}
            module.weight = Params4bit(weight, requires_grad=False, **options)
            module.weight._quantize(device)
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                norm = parameter.dim() == 1
                value = torch.ones(parameter.shape, device=device, dtype=dtype) if norm else random(*parameter.shape)
                setattr(module, name, torch.nn.Parameter(value, requires_grad=not norm))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.config.quantization_config = settings
    quantizer._process_model_after_weight_loading(model)
    model.hf_device_map = {"": device}
    if device != "cpu":
        fuse(model)
    return model.eval()


def recast(model, dtype: torch.dtype) -> None:
    """Has a packed model compute in another type."""
    from bitsandbytes.nn import Linear4bit

    from aurora.model.nf4 import PackedExperts

    for module in model.modules():
        if isinstance(module, PackedExperts):
            module.dtype = dtype
        elif isinstance(module, Linear4bit):
            module.compute_dtype = module.weight.quant_state.dtype = dtype
        else:
            for parameter in module.parameters(recurse=False):
                if parameter.dtype in (torch.bfloat16, torch.float16):
                    parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def nf4_as_on_a_cpu(device: str) -> bool:
    """Whether one matrix packs to the same bytes on the card, and unpacks to the same bits."""
    from aurora.model.nf4 import PackedExperts

    weight = torch.randn(1, 512, 1024, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    here, there = (PackedExperts.of(weight.to(place), True) for place in ("cpu", device))
    same = [torch.equal(one, other.cpu()) for one, other in zip(here.parameters(), there.parameters(), strict=True)]
    return all(same) and torch.equal(here.dense(0), there.dense(0).cpu())


def measure_card(device: str, tiny: bool) -> tuple[float, float]:
    """(operations/s of a large product, bytes/s of a large copy), the best of some."""
    size = 256 if tiny else 8192
    one, two = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty((1 if tiny else 2048) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = [float("inf"), float("inf")]
    for _ in range(8):
        for place, work in enumerate((lambda: one @ two, lambda: target.copy_(source))):
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            best[place] = min(best[place], time.perf_counter() - start)
    return 2 * size**3 / best[0], 2 * source.numel() / best[1]


@contextmanager
def dequantising(device: str) -> Iterator[list]:
    """Collects a pair of marks around each dequantisation of experts."""
    from aurora.model.nf4 import PackedExperts

    original, pairs = PackedExperts.dense_of, []

    def mark():
        if device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, experts, dtype=None):
        start = mark()
        result = original(self, experts, dtype)
        pairs.append((start, mark()))
        return result

    with mock.patch.object(PackedExperts, "dense_of", timed):
        yield pairs


def total_seconds(pairs: list, device: str) -> float:
    wait(device)
    if device == "cpu":
        return sum(end - start for start, end in pairs)
    return sum(start.elapsed_time(end) for start, end in pairs) / 1000


def write_rows(folder: Path, rows: int, length: int, config, packed: bool) -> None:
    """A base's config.json, and train.parquet and held_out.parquet as the format stage writes them, of random tokens."""
    import pyarrow

    from aurora.core.parquet import write_parquet

    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(rows * length)
    size = min(DOCUMENT, length) if packed else length
    filling = rows * (STEPS + 2) * (length // size)
    for name, count in (("train", filling), ("held_out", 1)):
        ids = torch.randint(3, config.vocab_size, (count, size), generator=generator, dtype=torch.int32).tolist()
        kind = pyarrow.list_(pyarrow.int32())
        columns = {"id": [str(number) for number in range(count)]}
        columns |= {"input_ids": pyarrow.array(ids, kind), "labels": pyarrow.array(ids, kind)}
        write_parquet(folder / f"{name}.parquet", pyarrow.table(columns))


def tokenizer():
    """Enough of a tokeniser for a collator."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>", padding_side="left")


def train(model, run: tuple, params, device: str) -> dict:
    """Some micro-batches of the project's sft stage; returns what was measured. The model comes back unadapted."""
    from transformers import TrainerCallback

    from aurora.sft import train as training
    from aurora.sft.checkpoints import Checkpoints
    from aurora.sft.curves import Live

    _, rows, length, dtype, packed = run
    marks: list[float] = []

    class Clock(TrainerCallback):
        """Times each optimiser step, here one micro-batch."""

        def on_step_begin(self, args, state, control, **kwargs):
            wait(device)
            if len(marks) == 1:
                pairs.clear()
            marks.append(time.perf_counter())

    changes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
    changes |= {"effective_batch_size": rows, "stop_after_steps": None, "eval_steps": 10**6, "save_steps": 10**6}
    changes |= {"packing": packed, "packing_length": length, "keep_checkpoints": ()}
    changes |= {"precision": {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[dtype]}
    if find_spec("torchao") is None or device == "cpu":
        changes["optim"] = "adamw_torch_fused"
    settings = params.sft.model_copy(update=changes)
    recast(model, getattr(torch, dtype))
    with (
        TemporaryDirectory() as name,
        mock.patch("aurora.model.loading.load_model", lambda *args, **options: model),
        mock.patch("aurora.model.loading.load_tokenizer", lambda *args: tokenizer()),
        dequantising(device) as pairs,
    ):
        folder = Path(name)
        write_rows(folder, rows, length, model.config, packed)
        training.be_deterministic()
        checkpoints = Checkpoints(folder / "scratch" / "checkpoints", 2)
        quantization = params.quantization.model_copy(update={"compute_dtype": dtype})
        trainer = training.build_trainer(folder, folder, settings, quantization, folder / "scratch", checkpoints)
        trainer.remove_callback(Live)  # curves for eyes, by dvclive
        trainer.add_callback(Clock())
        trainer.evaluate = lambda *args, **options: {}
        trainer._save_checkpoint = lambda *args: None
        trainer.args.eval_on_start = False
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        wait(device)
        spent = total_seconds(pairs, device)
    weights = [tensor.detach().cpu() for tensor in trainer.model.parameters() if tensor.requires_grad]
    trainer.model.unload()
    model.gradient_checkpointing_disable()
    model.eval()
    torch.use_deterministic_algorithms(False)
    # The first step warms up; the last mark stands before the last step.
    seconds = (marks[-1] - marks[1]) / (len(marks) - 2)
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if device != "cpu" else None,
        "tokens_per_second": rows * length / seconds,
        "share_dequantising": spent / (len(marks) - 1) / seconds,
        "adapter_sha256": hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights)).hexdigest(),
    }


@torch.inference_mode()
def infer(model, device: str, prompt: int, new: int) -> dict:
    """One row: a prompt at once, then greedy tokens one by one."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (1, prompt), generator=generator).to(device)
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    cache, times = None, []
    for _ in range(new + 1):
        wait(device)
        start = time.perf_counter()
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        wait(device)
        times.append(time.perf_counter() - start)
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if device != "cpu" else None,
        "prompt_tokens_per_second": prompt / times[0],
        "tokens_per_second": 1 / sorted(times[1:])[new // 2],
    }


@torch.inference_mode()
def peer(model, device: str, tokens: int) -> dict:
    """Milliseconds of the product with gate and up of one layer's experts, here and by grouped-nf4-gemm, the best of 8.

    Raises ImportError where that package, or Triton, is not installed.
    """
    from nf4_grouped import gemm_4bit_grouped

    from aurora.model.experts import Group, product

    packed = model.model.layers[0].mlp.experts.gate_up_proj
    experts, rows = packed.shape[0], 2 * tokens  # two experts a token, balanced
    given = torch.randn(rows, packed.shape[2], device=device, dtype=packed.dtype)
    sizes = [rows // experts] * experts
    group = Group(list(range(experts)), [sizes[0] * (expert + 1) for expert in range(experts)])
    scales = packed._scales(slice(None)).view(experts, packed.shape[1], -1)
    ways = {
        "here": lambda: product(packed, group, given, True),
        "grouped_nf4_gemm": lambda: gemm_4bit_grouped(given, packed.codes, scales, sizes, group.experts),
    }
    results = {name: work() for name, work in ways.items()}
    one, two = (result.float() for result in results.values())
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(8):
        for name, work in ways.items():
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return {f"{name}_ms": value for name, value in best.items()} | {
        "relative_difference": float((one - two).norm() / one.norm())
    }


def compare_with_peer(model, device: str) -> dict | None:
    """What `peer` measured at the tokens of two batches; None, with the reason said, where it cannot be."""
    try:
        found = {str(tokens): peer(model, device, tokens) for tokens in (2048, 8192)}
    except ImportError as error:
        say(f"peers: not compared, {error.name} is not installed")
        return None
    except Exception as error:  # another's code: nothing of what is measured here may depend on it
        say(f"peers: not compared ({str(error).partition(chr(10))[0][:200]})")
        return None
    for tokens, times in found.items():
        say(f"peers, {tokens} tokens: " + ", ".join(f"{name} {value:.4g}" for name, value in times.items()))
    return found


def beside(found: dict, predicted: dict | None) -> str:
    """What was measured, and whether it lies in the band that was predicted."""
    parts = []
    for name in ("peak_gib", "tokens_per_second"):
        if found[name] is not None:
            low, high = (predicted or {}).get(name, (None, None))
            band = (
                ""
                if low is None
                else f" (predicted {low:,.1f} to {high:,.1f}{'' if low <= found[name] <= high else ': MISSED'})"
            )
            parts.append(f"{found[name]:,.1f} {name}{band}")
    return ", ".join(parts)


@click.command(help=__doc__)
@click.option("--tiny", is_flag=True, help="A small shape and few tokens; runs on a CPU.")
@click.option("--record", is_flag=True, help="Write the record card, anew after each step.")
def main(tiny: bool, record: bool) -> None:
    from transformers import MixtralConfig

    from aurora.pipeline.params import load_params

    begun = time.perf_counter()
    end_in_time()
    if tiny:
        say("tiny: the code path alone; none of the figures below says anything about Mixtral-8x7B or a card")
    if not tiny and not torch.cuda.is_available():
        raise click.ClickException("the true shape needs a CUDA card; --tiny runs the same code on a CPU")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    params = load_params(Path(__file__).parent.parent / "profiles" / "paper.yaml")
    name = torch.cuda.get_device_name() if device != "cpu" else "CPU, no figure of its own"
    values: dict = {"card": name, "torch": torch.__version__, "measured": {}}
    known = {} if tiny or not PREDICTIONS.is_file() else json.loads(PREDICTIONS.read_text())["values"]
    predicted = next((bands for card, bands in known.items() if card.split()[0] in name), {})

    def keep(case: str, found: dict) -> None:
        values["measured"][case] = found | {"predicted": predicted.get(case)}
        say(f"{case}: {beside(found, predicted.get(case))}, {time.perf_counter() - begun:.0f} s")
        if record:
            write_record("card", Path(__file__), "bash benchmarks/card.sh", values)

    values["operations_per_second"], values["bytes_per_second"] = measure_card(device, tiny)
    say(
        f"card: {name}; {values['operations_per_second'] / 1e12:.0f} TFLOP/s in bfloat16,"
        f" {values['bytes_per_second'] / 1e9:.0f} GB/s copied"
    )
    values["nf4_as_on_a_cpu"] = nf4_as_on_a_cpu(device)
    say(f"NF4: bits of a CPU: {values['nf4_as_on_a_cpu']}")
    first = "float32" if device == "cpu" else "bfloat16"
    quantization = params.quantization.model_copy(update={"compute_dtype": first})
    config = MixtralConfig(
        **(TINY if tiny else {"rope_theta": 1e6, "max_position_embeddings": 32768}),
        architectures=["MixtralForCausalLM"],
    )
    model = random_model(config, quantization, device)
    say(f"model: {config.num_hidden_layers} layers, {time.perf_counter() - begun:.0f} s")
    runs = (("train", 2, 32, first, False), ("train packed", 1, 128, first, True)) if tiny else RUNS
    for number, run in enumerate(runs):
        if time.perf_counter() - begun > BUDGET:
            say(f"{run[0]}: left out, {BUDGET} s are over")
            continue
        try:
            keep(run[0], train(model, run, params, device))
            if number == 0:
                again = train(model, run, params, device)["adapter_sha256"]
                values["equal_runs"] = again == values["measured"][run[0]]["adapter_sha256"]
                say(f"a second run gives the same bytes: {values['equal_runs']}")
                recast(model, getattr(torch, first))
                keep("decode 1", infer(model, device, *((64, 8) if tiny else (512, 64))))
                values["peer"] = compare_with_peer(model, device)
        except (RuntimeError, ValueError) as error:  # memory too: the next one may fit
            say(f"{run[0]}: failed ({str(error).partition(chr(10))[0][:200]})")
    say(f"done in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
