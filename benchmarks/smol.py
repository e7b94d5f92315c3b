"""What the other claims come to on a model that speaks: run it where `dvc repro` has run profiles/smol.yaml.

    .venv/bin/python benchmarks/smol.py [--parts logits,quality,replies,prefix,merge,drift,speed] [--rows 24] [--steps 3]

The dense model is SmolLM2-135M as plain transformers has it, its weights those of the first expert of each layer. All
computes in float32 on the settings of the stages. quality: the loss on held-out rows, dense, upcycled, and packed in
NF4, which is what the packing costs. replies: their language, before and after. prefix: the shared-prefix backend beside lm-eval's own, on the questions of one
subject of each benchmark. merge: the merged folder beside PEFT's merge_and_unload of the same adapter. drift: what the
merge stage has measured. speed: a training step of the same packed rows, and batched greedy decoding.
"""

import stages  # isort: skip  # before torch: the settings under which the stages compute
import gc
import json
import math
import time
from pathlib import Path

import click
import torch

MEASURES = ("aurora/model", "aurora/eval", "aurora/merge", "aurora/upcycled_base")

BASE, MERGED, ADAPTER = Path("data/raw/model/base"), Path("models/merged"), Path("models/adapter")
ROWS, BENCHMARKS = Path("data/format"), Path("data/raw/benchmark")
EXPERT = "block_sparse_moe.experts.0."
MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
PARTS = ("logits", "quality", "replies", "prefix", "merge", "drift", "speed")


def show(*cells: object) -> None:
    """A line of the table."""
    print("  ".join(f"{cell!s:<38}" if not at else f"{cell!s:>14}" for at, cell in enumerate(cells)), flush=True)


def params():
    """The params.yaml of this run."""
    from aurora.pipeline.params import load_params

    return load_params()


def dense_model():
    """The Llama that the base was upcycled from, by plain transformers, in float32."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    given = AutoConfig.from_pretrained(BASE).to_dict()
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters")
    config = LlamaConfig(**{name: given[name] for name in (*same, *more, "tie_word_embeddings")})
    state = {}
    for path in sorted(BASE.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            head, found, tail = name.partition(EXPERT)
            if found:
                state[f"{head}mlp.{MLP[tail.split('.')[0]]}.weight"] = tensor.float()
            elif "block_sparse_moe" not in name:
                state[name] = tensor.float()
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise click.ClickException(f"{BASE}: not the upcycled base of profiles/smol.yaml")
    return model.eval()


def dense_nf4():
    """The dense model, each matrix of its layers there and back through bitsandbytes' NF4: what four bits cost, without
    a line of Aurora."""
    from bitsandbytes import functional

    model, double = dense_model(), params().quantization.double_quant
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            packed = functional.quantize_4bit(
                module.weight.data, blocksize=64, quant_type="nf4", compress_statistics=double
            )
            module.weight.data = functional.dequantize_4bit(*packed)
    return model


def mixtral(bits: int, folder: Path = BASE):
    """The folder as Aurora loads it."""
    from aurora.model.loading import load_model

    return load_model(folder, params().quantization.model_copy(update={"bits": bits}))


def lora(model):
    """The model with a fresh adapter of the recipe."""
    from peft import LoraConfig, get_peft_model

    recipe = params().sft.lora
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM", r=recipe.r, lora_alpha=recipe.lora_alpha, target_modules=list(recipe.target_modules)
        ),
    )


def part_logits(rows: int, steps: int) -> None:
    """Greatest difference of logits between the dense model and the upcycled one."""
    from aurora.merge.drift import compare, logits, read_samples
    from aurora.merge.params import Drift

    samples = read_samples(ROWS / "held_out.parquet", Drift(rows=min(rows, 6), positions=64, merged_bits=(4,)))
    dense, packed = (list(logits(make(), samples, "dense")) for make in (dense_model, dense_nf4))
    show("logits", "greatest", "mean", "top-1 agrees", "KL, nats")
    for name, bits, wanted in (
        ("upcycled, float32, to dense", 32, dense),
        ("upcycled, NF4, to dense", 4, dense),
        ("upcycled, NF4, to dense through NF4", 4, packed),
    ):
        found = compare(wanted, logits(mixtral(bits), samples, f"{bits} bits"))
        numbers = (f"{found[key]:.2e}" for key in ("max_abs", "mean"))
        show(name, *numbers, f"{found['top1_agreement']:.1%}", f"{found['kl_divergence']:.2e}")
        if bits == 32:
            print(json.dumps({"max_abs_logits": float(f"{found['max_abs']:.1e}")}))


def part_quality(rows: int, steps: int) -> None:
    """Loss and perplexity on held-out answers."""
    from aurora.eval.held_out import held_out_loss

    show("held-out answers", "loss, nats", "perplexity", "bits a token", "against dense")
    first = None
    for name, make in {
        "dense, float32": dense_model,
        "upcycled, float32": lambda: mixtral(32),
        "dense, through bitsandbytes' NF4": dense_nf4,
        "upcycled, NF4": lambda: mixtral(4),
        "tuned and merged, float32": lambda: mixtral(32, MERGED),
        "tuned and merged, NF4": lambda: mixtral(4, MERGED),
    }.items():
        loss = held_out_loss(make(), ROWS / "held_out.parquet", rows, 1024)
        gc.collect()
        first = loss if first is None else first
        bits = loss / math.log(2)
        show(name, f"{loss:.4f}", f"{math.exp(loss):.3f}", f"{bits:.4f}", f"{bits - first / math.log(2):+.4f}")


def part_replies(rows: int, steps: int) -> None:
    """The language of greedy replies to the same held-out Chinese prompts, before and after, in 4 bits."""
    from aurora.eval.replies import answer_prompts
    from aurora.model.loading import load_tokenizer

    settings = params().eval
    show("replies to held-out prompts", "zh_reply_rate", "mixed", "repetition", "characters", "prompts")
    for name, folder in (("base", BASE), ("tuned", MERGED)):
        model, tokenizer = mixtral(4, folder), load_tokenizer(folder)
        found, table = answer_prompts(
            model, tokenizer, ROWS / "held_out.parquet", settings.replies, settings.max_length
        )
        keys = ("zh_reply_rate", "mixed_rate", "repetition", "mean_length")
        show(name, *(f"{found[key]:.2f}" for key in keys), len(table))
        del model
        gc.collect()


def part_prefix(rows: int, steps: int) -> None:
    """PrefixLM beside lm-eval's own backend on the packed base."""
    from lm_eval.models.huggingface import HFLM

    from aurora.eval.evaluate import read_subjects
    from aurora.eval.prefix import PrefixLM
    from aurora.eval.tasks import load_task
    from aurora.model.loading import load_tokenizer

    settings, asked = params().eval, []
    for name, members in read_subjects(BENCHMARKS, settings).items():
        task = load_task(name, members[0], settings.tasks[name].num_fewshot)
        task.build_all_requests()
        asked += task.instances
    model, tokenizer = mixtral(4), load_tokenizer(BASE)
    common = {"tokenizer": tokenizer, "max_length": settings.max_length, "softmax_dtype": "float32"}
    found = {}
    show(f"{len(asked) // 4} questions, NF4", "seconds", "CPU seconds", "tokens run")
    for name, lm in {
        "lm-eval, hf": HFLM(model, batch_size=1, **common),
        "aurora, hf-prefix": PrefixLM(model, batch_tokens=settings.batch_tokens, **common),
    }.items():
        count = [0]
        hook = model.register_forward_pre_hook(
            lambda _module, arguments, given, count=count: count.__setitem__(
                0, count[0] + (given.get("input_ids", arguments[0] if arguments else None)).numel()
            ),
            with_kwargs=True,
        )
        wall, cpu = time.perf_counter(), time.process_time()
        answers = lm.loglikelihood(asked, disable_tqdm=True)
        show(name, f"{time.perf_counter() - wall:.1f}", f"{time.process_time() - cpu:.1f}", f"{count[0]:,}")
        hook.remove()
        found[name] = torch.tensor([value for value, _ in answers], dtype=torch.float64).view(-1, 4)
    one, two = found.values()
    same = (one.argmax(dim=1) == two.argmax(dim=1)).sum()
    show("greatest difference, nats", f"{(one - two).abs().max():.2e}")
    show("same answers", f"{same} of {len(one)}")


def part_merge(rows: int, steps: int) -> None:
    """The merged folder beside PEFT's own merge, tensor by tensor."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().state_dict()
    ours = AutoModelForCausalLM.from_pretrained(MERGED, dtype=torch.bfloat16).state_dict()
    plain = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16).state_dict()
    equal = sum(torch.equal(ours[name], tensor.bfloat16()) for name, tensor in peft.items())
    changed = [name for name in ours if not torch.equal(ours[name], plain[name])]
    greatest = max((ours[name].float() - peft[name].bfloat16().float()).abs().max() for name in ours)
    show("merged against PEFT in float32, rounded", "tensors", "equal", "changed", "greatest diff.")
    show("models/merged", len(ours), equal, len(changed), f"{greatest:.1e}")


def part_drift(rows: int, steps: int) -> None:
    """The figures of the merge stage."""
    found = json.loads(Path("data/merge/metrics.json").read_text(encoding="utf-8"))["drift"]
    show(f"drift, {found['positions']} positions", "greatest", "mean", "top-1 agrees", "KL, nats")
    for name, values in found.items():
        if isinstance(values, dict):
            numbers = (f"{values[key]:.3f}" for key in ("max_abs", "mean"))
            show(name.replace("_", " "), *numbers, f"{values['top1_agreement']:.1%}", f"{values['kl_divergence']:.2e}")


def part_speed(rows: int, steps: int) -> None:
    """Seconds of a training step on 2 x 512 tokens without padding, and tokens/s; decoding of 8 replies."""
    from aurora.core.parquet import read_parquet
    from aurora.eval.replies import generate

    table = read_parquet(ROWS / "train.parquet", "format")
    flat = [token for row in table["input_ids"].to_pylist() for token in row][: 1024 * steps]
    batches = torch.tensor(flat).view(steps, 2, 512)
    show("2 x 512 tokens a step", "seconds", "tokens/s", "CPU seconds", "decoding, tokens/s")
    for name, make in {
        "plain transformers + PEFT, dense": dense_model,
        "aurora, 4 experts in NF4": lambda: mixtral(4),
    }.items():
        model = lora(make())
        walls, cpus = [], []
        for batch in batches:
            wall, cpu = time.perf_counter(), time.process_time()
            model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        wall, cpu = min(walls), min(cpus)
        prompts = [row[:32] for row in table["input_ids"].to_pylist()[:8]]
        start = time.perf_counter()
        spoken = sum(map(len, generate(model.eval(), prompts, 16, frozenset([-1]))))
        decoding = spoken / (time.perf_counter() - start)
        show(name, f"{wall:.1f}", f"{1024 / wall:.1f}", f"{cpu:.1f}", f"{decoding:.1f}")
        del model
        gc.collect()


@click.command()
@click.option("--parts", default=",".join(PARTS), show_default=True)
@click.option("--rows", default=24, show_default=True, help="Held-out rows of logits and quality.")
@click.option("--steps", default=3, show_default=True, help="Training steps, of which the fastest counts.")
def main(parts: str, rows: int, steps: int) -> None:
    """Print the table."""
    import resource

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(params().sft.threads)
    for name in parts.split(","):
        if name not in PARTS:
            raise click.BadParameter(f"{name} is none of {', '.join(PARTS)}", param_hint="--parts")
        globals()[f"part_{name}"](rows, steps)
        gc.collect()
        print(flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak of this process {peak:.2f} GiB; {stages.__name__} settings")


if __name__ == "__main__":
    main()
