"""Mixtral-8x7B's true shape on one card: memory and speed of training and of inference, beside the paper's.

    python benchmarks/mixtral_gpu.py              # one CUDA card of 80 GB, under 8 minutes
    python benchmarks/mixtral_gpu.py --tiny       # the same code on a small shape, on a CPU too: no figure of its own

Needs, as wheels in the versions of pyproject.toml, beside torch with CUDA: transformers, tokenizers, huggingface-hub,
safetensors, accelerate, peft, bitsandbytes, trl, datasets, pyarrow, pydantic, ruamel.yaml, click, numpy and tqdm. Where
only part of them is installed and there is no network, the rest unpacked into a folder on PYTHONPATH does: of
bitsandbytes (43 MB) the Python files and the libbitsandbytes_cuda*.so of the card's CUDA (4 MB) suffice. torchao gives
the paper's 4-bit optimiser; without it adamw_torch stands in, for 3.4 million LoRA weights. No model weights are needed:
random ones of the true shape are packed on the card, one expert at a time, and run through the project's own sft path
(aurora.sft.train.build_trainer, profiles/paper.yaml).

Printed as it goes, so that a cut-off run still tells what it has measured; after LAST seconds it cuts itself off:
  the card      bfloat16 product and copy speed, measured here: the limits below are arithmetic on these two
  training      GiB (paper, Table 4: 45), tokens/s, share of the limit, share of time in dequantising experts
  inference     GiB (paper, Table 4: 25), prompt and new tokens/s, share of the limit
"""

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

MEASURES = ("aurora/model", "aurora/sft")

GIB = 2**30
BUDGET = 390  # seconds after which no further measurement begins
LAST = 465  # seconds after which the script ends wherever it is; 480 are allowed
ROWS = ((2, 1024), (1, 8192), (1, 16384))  # the paper's batch, and packed rows
STEPS = 4  # micro-batches measured, after one that warms up
TINY = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}


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
        return (
            torch.randn(shape, generator=generator, device=device, dtype=torch.float32).mul_(0.02).to(dtype)
        )

    for _, module, name in list(fused_tensors(model)):
        shape = tuple(getattr(module, name).shape)
        packed = PackedExperts(shape, quantization.double_quant, dtype, device)
        for expert in range(shape[0]):
            packed.put(expert, [random(*shape[1:])])
        replace(module, name, packed)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight = random(module.out_features, module.in_features)
            options = {
                "compress_statistics": quantization.double_quant,
                "quant_type": "nf4",
                "module": module,
            }
            module.weight = Params4bit(weight, requires_grad=False, **options)
            module.weight._quantize(device)
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                norm = parameter.dim() == 1
                value = (
                    torch.ones(parameter.shape, device=device, dtype=dtype)
                    if norm
                    else random(*parameter.shape)
                )
                setattr(module, name, torch.nn.Parameter(value, requires_grad=not norm))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.config.quantization_config = settings
    quantizer._process_model_after_weight_loading(model)
    model.hf_device_map = {"": device}
    return model.eval()


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

    original, pairs = PackedExperts.dense_of, []  # AT_ONCE takes a whole expert of Mixtral-8x7B on a card

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


def active_parameters(config) -> int:
    """Weights that one token meets in a product: attention, k experts, router and head."""
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * head * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    experts = config.num_experts_per_tok * 3 * config.hidden_size * config.intermediate_size
    layer = attention + experts + config.hidden_size * config.num_local_experts
    return config.num_hidden_layers * layer + config.vocab_size * config.hidden_size


def write_rows(folder: Path, rows: int, length: int, vocabulary: int) -> None:
    """train.parquet and held_out.parquet as the format stage writes them, of random tokens."""
    import pyarrow

    from aurora.core.parquet import write_parquet

    generator = torch.Generator().manual_seed(rows * length)
    for name, count, size in (("train", rows * (STEPS + 2), length), ("held_out", rows, 64)):
        ids = torch.randint(3, vocabulary, (count, size), generator=generator, dtype=torch.int32).tolist()
        kind = pyarrow.list_(pyarrow.int32())
        columns = {"input_ids": pyarrow.array(ids, kind), "labels": pyarrow.array(ids, kind)}
        write_parquet(folder / f"{name}.parquet", pyarrow.table(columns))


def tokenizer():
    """Enough of a tokeniser for a collator."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="</s>", padding_side="left"
    )


def train(model, rows: int, length: int, sft, quantization, device: str, limit: float) -> dict:
    """Some micro-batches of the project's sft stage; returns what was measured. The model comes back unadapted."""
    from transformers import TrainerCallback

    from aurora.sft import train as training

    marks: list[float] = []

    class Clock(TrainerCallback):
        """Times each optimiser step, here one micro-batch."""

        def on_step_begin(self, args, state, control, **kwargs):
            wait(device)
            if len(marks) == 1:
                pairs.clear()
            marks.append(time.perf_counter())

    changes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
    changes |= {"stop_after_steps": None, "packing": False, "eval_steps": 10**6, "save_steps": 10**6}
    if find_spec("torchao") is None:
        changes["optim"] = "adamw_torch"
    if device == "cpu":
        changes |= {"precision": "fp32", "optim": "adamw_torch", "threads": 1}
    settings = sft.model_copy(update=changes)
    with (
        TemporaryDirectory() as folder,
        mock.patch("aurora.model.loading.load_model", lambda *args, **options: model),
        mock.patch("aurora.model.loading.load_tokenizer", lambda *args: tokenizer()),
        dequantising(device) as pairs,
    ):
        write_rows(Path(folder), rows, length, model.config.vocab_size)
        trainer = training.build_trainer(
            Path(folder), Path(folder), settings, quantization, Path(folder) / "scratch"
        )
        trainer.add_callback(Clock())
        trainer.args.eval_on_start = False
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        wait(device)
        spent = total_seconds(pairs, device)
    # The first step warms up; the last mark stands before the last step.
    seconds = (marks[-1] - marks[1]) / (len(marks) - 2)
    steps_counted = len(marks) - 1
    speed = rows * length / seconds
    peak = torch.cuda.max_memory_allocated() / GIB if device != "cpu" else float("nan")
    trainer.model.unload()
    return {
        "rows": rows,
        "length": length,
        "peak_gib": peak,
        "tokens_per_second": speed,
        "share_of_limit": speed / limit,
        "share_dequantising": spent / steps_counted / seconds,
    }


@torch.inference_mode()
def infer(model, device: str, prompt: int, new: int, operations: float, copy: float) -> dict:
    """One row: a prompt at once, then greedy tokens one by one."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (1, prompt), generator=generator).to(device)
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    cache, times = None, []
    for turn in range(new + 1):
        wait(device)
        start = time.perf_counter()
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        wait(device)
        times.append(time.perf_counter() - start)
        if turn == 0 and prompt > 1:
            first = times.pop()
    active = active_parameters(model.config)
    # A new token reads its weights once, 4.13 bits each; the head is in 16.
    read = active * 4.13 / 8 + model.config.vocab_size * model.config.hidden_size * (2 - 4.13 / 8)
    speed = 1 / sorted(times)[len(times) // 2]
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if device != "cpu" else float("nan"),
        "prompt_tokens_per_second": prompt / first,
        "prompt_share_of_limit": prompt / first / (operations / (2 * active)),
        "new_tokens_per_second": speed,
        "new_share_of_limit": speed / (copy / 2 / read),
    }


@click.command(help=__doc__)
@click.option("--tiny", is_flag=True, help="A small shape and few tokens; runs on a CPU.")
@click.option("--json", "as_json", is_flag=True, help="Also one JSON line with everything at the end.")
def main(tiny: bool, as_json: bool) -> None:
    from transformers import MixtralConfig

    from aurora.core.errors import AuroraError
    from aurora.pipeline.params import load_params

    begun = time.perf_counter()
    end_in_time()
    if tiny:
        say("tiny: the code path alone; none of the figures below says anything about Mixtral-8x7B or a card")
    if not tiny and not torch.cuda.is_available():
        raise click.ClickException("the true shape needs a CUDA card; --tiny runs the same code on a CPU")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    params = load_params(Path(__file__).parent.parent / "profiles" / "paper.yaml")
    quantization = params.quantization
    if device == "cpu":
        quantization = quantization.model_copy(update={"compute_dtype": "float32"})
    config = MixtralConfig(**(TINY if tiny else {"rope_theta": 1e6, "max_position_embeddings": 32768}))
    name = torch.cuda.get_device_name() if device != "cpu" else "CPU, no figure of its own"
    operations, copy = measure_card(device, tiny)
    say(f"card: {name}; {operations / 1e12:.0f} TFLOP/s in bfloat16, {copy / 1e9:.0f} GB/s copied")
    model = random_model(config, quantization, device)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) / GIB
    say(
        f"model: {config.num_hidden_layers} layers, {held:.2f} GiB of parameters, {time.perf_counter() - begun:.0f} s"
    )
    outcome = {"card": name, "operations": operations, "copy": copy, "parameters_gib": held, "training": []}
    sizes = (64, 8) if tiny else (1024, 64)
    outcome["inference"] = found = infer(model, device, *sizes, operations, copy)
    say(
        f"inference: {found['peak_gib']:.1f} GiB (paper 25), prompt of {sizes[0]}: "
        f"{found['prompt_tokens_per_second']:.0f} tokens/s ({found['prompt_share_of_limit']:.0%} of the limit), "
        f"new: {found['new_tokens_per_second']:.1f} tokens/s ({found['new_share_of_limit']:.0%} of the limit)"
    )
    # Forward, recompute and input gradient: three products of two operations a weight. The experts do not compute
    # the product with down_proj again, so that they could do a little better than this limit.
    limit = operations / (6 * active_parameters(config))
    say(
        f"training limit by arithmetic: {limit:.0f} tokens/s ({6 * active_parameters(config) / 1e9:.1f} GFLOP a token)"
    )
    for rows, length in ((2, 32), (1, 128)) if tiny else ROWS:
        if time.perf_counter() - begun > BUDGET:
            say(f"training {rows} x {length}: left out, {BUDGET} s are over")
            continue
        try:
            found = train(model, rows, length, params.sft, quantization, device, limit)
        except torch.OutOfMemoryError as error:
            say(f"training {rows} x {length}: out of memory ({str(error).partition('.')[0]})")
            break
        except (AuroraError, RuntimeError) as error:
            say(f"training {rows} x {length}: failed ({str(error).partition(chr(10))[0][:200]})")
            continue
        outcome["training"].append(found)
        say(
            f"training {rows} x {length}: {found['peak_gib']:.1f} GiB (paper 45 at 2 x 1,024), "
            f"{found['tokens_per_second']:.0f} tokens/s ({found['share_of_limit']:.0%} of the limit), "
            f"{found['share_dequantising']:.0%} of the time in dequantising experts"
        )
    say(f"done in {time.perf_counter() - begun:.0f} s")
    if as_json:
        say(json.dumps(outcome))


if __name__ == "__main__":
    main()
