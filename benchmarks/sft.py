"""The sft stage against a flat PyTorch loop and against TRL with its defaults, on the small profile's base and rows.

    python benchmarks/sft.py [--steps 40] [--trl-steps 8] [--rounds 2] [--threads 2]

Wants `dvc repro format`. Each way runs in a process of its own, in turn, over the same rows in the same order; the
first three steps of each are not counted. The flat loops are those of tests/flat_loop.py: one forms all logits, the
other, as the stage does, only those at labelled positions. `padding` is the share of the batches' cells that hold no
token. Losses of the stage are compared with the flat loop's step by step.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

MEASURES = ("aurora/sft",)

ROOT = Path(__file__).resolve().parent.parent
BASE, ROWS = ROOT / "data/raw/model/base", ROOT / "data/format"
WARM_UP = 3
WAYS = {
    "stage": "sft stage",
    "lean": "flat loop, labelled positions",
    "flat": "flat loop, all logits",
    "plain": "TRL's loss, else as the stage",
    "trl": "TRL with its defaults",
}


def recipe(steps: int):
    """params.yaml of the small profile, its sft section logged at each step and stopped after `steps`."""
    from aurora.pipeline.params import load_params

    params = load_params(ROOT / "params.yaml")
    changes = {"stop_after_steps": steps, "logging_steps": 1, "eval_steps": 10**6, "save_steps": 10**6}
    changes |= {"threads": int(os.environ["BENCHMARK_THREADS"])} if "BENCHMARK_THREADS" in os.environ else {}
    return params.model_copy(update={"sft": params.sft.model_copy(update=changes)})


def stage(steps: int) -> dict:
    """The trainer of the stage."""
    import torch

    from aurora.model.allocator import keep_heap
    from aurora.sft.checkpoints import Checkpoints
    from aurora.sft.train import be_deterministic, build_trainer

    params = recipe(steps)
    keep_heap()
    torch.set_num_threads(params.sft.threads)
    be_deterministic()
    scratch = Path(tempfile.mkdtemp())
    checkpoints = Checkpoints(scratch / "checkpoints", 1)
    trainer = build_trainer(BASE, ROWS, params.sft, params.quantization, scratch, checkpoints)
    os.chdir(scratch)  # of the live curves
    found = timed(trainer)
    found["padding"] = 1 - trainer.tokens / trainer.padding
    found["loss"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return found


def flat(steps: int, lean: bool) -> dict:
    """A loop of tests/flat_loop.py."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from stand_ins import flat_loop

    from aurora.model.allocator import keep_heap

    def labelled(model, batch):
        ids, labels, mask = batch
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        places = (targets != -100).any(0).nonzero().flatten()
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=places).logits
        keep = targets[:, places] != -100
        return torch.nn.functional.cross_entropy(logits[keep].float(), targets[:, places][keep], reduction="sum")

    params = recipe(steps)
    keep_heap()
    torch.use_deterministic_algorithms(True)
    score = labelled if lean else flat_loop.likelihood
    return flat_loop.train(BASE, ROWS / "train.parquet", params.sft, params.quantization, steps, score)


def trl(steps: int, defaults: bool) -> dict:
    """TRL's SFTTrainer on our packed base: all defaults, or what the stage sets but for the loss."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from aurora.model.allocator import keep_heap
    from aurora.model.loading import load_model, load_tokenizer

    params = recipe(steps)
    sft = params.sft
    keep_heap()
    torch.set_num_threads(sft.threads)
    scratch = tempfile.mkdtemp()
    rows = load_dataset("parquet", data_files=str(ROWS / "train.parquet"), split="train", cache_dir=scratch)
    ours = {} if defaults else {"bf16": False, "gradient_checkpointing": False, "router_aux_loss_coef": 0.0}
    trainer = SFTTrainer(
        model=load_model(BASE, params.quantization),
        args=SFTConfig(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=sft.per_device_train_batch_size,
            learning_rate=sft.learning_rate,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **ours,
        ),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        processing_class=load_tokenizer(BASE),
        peft_config=LoraConfig(
            r=sft.lora.r, lora_alpha=sft.lora.lora_alpha, target_modules=list(sft.lora.target_modules)
        ),
    )
    return timed(trainer)


def timed(trainer) -> dict:
    """Trains, and notes the seconds and tokens of each step; whatever the trainer does between steps counts."""
    from transformers import TrainerCallback

    found: dict = {"seconds": [], "cpu": [], "tokens": []}
    usual, counted = trainer.compute_loss, [0]

    def compute_loss(model, inputs, *args, **kwargs):
        counted[0] += int(inputs["attention_mask"].sum())
        return usual(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss

    class Clock(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *args, **kwargs):
            now = time.perf_counter(), time.process_time()
            found["seconds"].append(now[0] - self.began[0])
            found["cpu"].append(now[1] - self.began[1])
            found["tokens"].append(counted[0])
            counted[0] = 0
            self.began = now

    trainer.add_callback(Clock())
    trainer.train()
    return found


def measure(way: str, steps: int, threads: int | None) -> dict:
    """One way in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment |= {"BENCHMARK_THREADS": str(threads)} if threads else {}
    command = [sys.executable, __file__, "--worker", "--way", way, "--steps", str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


@click.command()
@click.option("--steps", default=40, show_default=True, help="Optimiser steps of the stage and the flat loops.")
@click.option("--trl-steps", default=8, show_default=True, help="Optimiser steps of TRL, which takes longer.")
@click.option("--rounds", default=2, show_default=True, help="How often each way runs, in turn.")
@click.option("--threads", type=int, help="CPU threads, if not those of params.yaml.")
@click.option("--way", type=click.Choice(WAYS), help="Measure this one alone, into --kept.")
@click.option("--kept", type=click.Path(path_type=Path), help="File of what --way has measured; print its table.")
@click.option("--worker", is_flag=True, hidden=True)
def main(
    steps: int, trl_steps: int, rounds: int, threads: int | None, way: str | None, kept: Path | None, worker: bool
) -> None:
    """Print a line for each way."""
    if worker:
        work(way, steps)
        return
    many = {name: trl_steps if name in ("trl", "plain") else steps for name in WAYS}
    found: dict[str, list[dict]] = {name: [] for name in WAYS}
    if kept and kept.is_file():
        found |= json.loads(kept.read_text())
    if way:
        found[way].append(measure(way, many[way], threads))
        kept.write_text(json.dumps(found))
        return
    if not kept:
        for number in range(rounds):
            for name in WAYS:
                if name not in ("trl", "plain") or not number:
                    found[name].append(measure(name, many[name], threads))
    print_table(found)


def work(way: str, steps: int) -> None:
    """Measures one way in this process and prints it as JSON."""
    found = {
        "stage": stage,
        "lean": lambda steps: flat(steps, True),
        "flat": lambda steps: flat(steps, False),
        "plain": lambda steps: trl(steps, False),
        "trl": lambda steps: trl(steps, True),
    }[way](steps)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


def print_table(found: dict[str, list[dict]]) -> None:
    """The quickest run of each step counts: what the machine did beside it is not the way's doing."""
    best = {}
    for name, runs in found.items():
        best[name] = {
            key: [min(some) for some in zip(*(run[key] for run in runs), strict=True)]
            for key in ("seconds", "cpu", "tokens")
        }
    print(
        f"{'':<32}{'ms/step':>9}{'CPU ms':>8}{'tokens/s':>10}{'peak GiB':>10}{'stage is':>10}{'by CPU':>8}{'steps':>7}"
    )
    for name, values in best.items():
        count = len(values["seconds"]) - WARM_UP
        part = slice(WARM_UP, WARM_UP + count)
        total, cpu, tokens = (sum(values[key][part]) for key in ("seconds", "cpu", "tokens"))
        peak = statistics.median(run["peak"] for run in found[name])
        print(
            f"{WAYS[name]:<32}{1000 * total / count:>9.0f}{1000 * cpu / count:>8.0f}{tokens / total:>10,.0f}"
            f"{peak / 2**30:>10.2f}{total / sum(best['stage']['seconds'][part]):>9.2f}x"
            f"{cpu / sum(best['stage']['cpu'][part]):>7.2f}x{count:>7}"
        )
    for key, unit in (("seconds", "time"), ("cpu", "CPU time")):
        extra = sum(best["stage"][key][WARM_UP:]) / sum(best["lean"][key][WARM_UP:]) - 1
        print(f"overhead of the trainer over the flat loop with the same loss, {unit} a step: {100 * extra:+.1f} %")
    pairs = zip(found["stage"][0]["loss"], found["flat"][0]["loss"], strict=True)
    print(f"largest difference of a step's loss, stage and flat loop: {max(abs(a - b) for a, b in pairs):.1e}")
    print(f"padding: {100 * found['stage'][0]['padding']:.1f} % of the stage's batches")


if __name__ == "__main__":
    main()
