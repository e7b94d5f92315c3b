"""Prefix sharing beside lm-eval's own backend, the CPU work of the full suite, both protocols, and batched decoding.

    AURORA_REAL_DATA=FOLDER .venv/bin/python benchmarks/eval.py [--questions 48] [--threads 2]

The model is a random Mixtral of 100 million parameters in float32. The questions are the first of every twentieth
subject of the three real benchmarks, with five shots. Each backend runs in a process of its own, stock at the fastest
of the batch sizes 1, 2, 4, 8 in a trial; peak memory is what a process needs above the loaded model.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MEASURES = ("aurora/eval",)

NAMES = ("ceval", "mmlu", "cmmlu")
BATCH_SIZES = (1, 2, 4, 8)
TRIAL = 8  # questions on which a batch size is tried


def build_model():
    """A Mixtral of about 100 million parameters."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=640,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=4096,
        initializer_range=0.04,
        bos_token_id=1,
        eos_token_id=2,
    )
    return MixtralForCausalLM(config).eval()


def build_tokenizer():
    """Mistral's v1 tokeniser."""
    import mistral_common
    from transformers import AutoTokenizer

    from aurora.small_base.tokenizer_folder import write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def subjects(data: Path, step: int, limit: int | None) -> dict[str, list]:
    """Every `step`-th subject of each benchmark."""
    from aurora.eval.benchmarks import read_benchmark

    return {name: read_benchmark(data / "benchmarks" / name, name, 5, limit)[::step] for name in NAMES}


def requests(data: Path, limit: int) -> list:
    """Requests as lm-eval's tasks build them."""
    from aurora.eval.tasks import load_task

    found = []
    for name, members in subjects(data, 20, limit).items():
        for subject in members:
            task = load_task(name, subject, 5)
            task.build_all_requests()
            found += task.instances
    return found


def resident() -> int:
    """Memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Peak:
    """The most memory that this process held while the block ran, above what it held before."""

    def __enter__(self) -> "Peak":
        self.before = self.most = resident()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            self.most = max(self.most, resident())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.bytes = self.most - self.before


def count_tokens(model) -> list[int]:
    """A list whose one number grows by the tokens of each forward pass."""
    count = [0]

    def note(_module, arguments, settings):
        ids = settings.get("input_ids", arguments[0] if arguments else None)
        count[0] += ids.numel()

    model.register_forward_pre_hook(note, with_kwargs=True)
    return count


def part_backend(kind: str, data: Path, limit: int, threads: int) -> dict:
    """Wall time, processor time, tokens, memory and answers of one backend."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from aurora.eval.prefix import PrefixLM

    torch.set_num_threads(threads)
    model, tokenizer, asked = build_model(), build_tokenizer(), requests(data, limit)
    count = count_tokens(model)
    settings = {"tokenizer": tokenizer, "max_length": 4096, "softmax_dtype": "float32"}
    batch_size = None
    if kind == "stock":
        trial = asked[: 4 * TRIAL]
        seconds = {}
        for size in BATCH_SIZES:
            start = time.perf_counter()
            HFLM(model, batch_size=size, **settings).loglikelihood(trial, disable_tqdm=True)
            seconds[size] = time.perf_counter() - start
        batch_size = min(seconds, key=seconds.get)
        lm = HFLM(model, batch_size=batch_size, **settings)
    else:
        lm = PrefixLM(model, batch_tokens=1024, **settings)
    count[0] = 0
    with Peak() as peak:
        start, used = time.perf_counter(), time.process_time()
        answers = lm.loglikelihood(asked, disable_tqdm=True)
        wall, processor = time.perf_counter() - start, time.process_time() - used
    rows = {tuple(tokenizer.encode(request.args[0])): request.task_name for request in asked}
    shared: dict[str, tuple] = {}
    for row, task in rows.items():  # the part that all prompts of a subject share
        prefix = shared.get(task, row)
        length = next((i for i, (a, b) in enumerate(zip(prefix, row, strict=False)) if a != b), len(prefix))
        shared[task] = prefix[:length]
    once = sum(map(len, shared.values())) + sum(len(row) - len(shared[task]) for row, task in rows.items())
    return {
        "questions": len(asked) // 4,
        "batch": batch_size,
        "wall": wall,
        "processor": processor,
        "tokens": count[0],
        "once": once,
        "memory": peak.bytes,
        "answers": [value for value, _ in answers],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def part_overhead(data: Path, threads: int) -> dict:
    """Seconds for tasks, prompts, tokens, passes and scores of all 26,970 questions, the model stubbed."""
    start = time.perf_counter(), time.process_time()
    from aurora.eval.evaluate import score_benchmarks
    from aurora.pipeline.params import load_params

    lm = stubbed(threads)
    params = load_params(Path(__file__).parent.parent / "params.yaml").eval
    _, table = score_benchmarks(lm, subjects(data, 1, None), params)
    return {
        "questions": len(table),
        "wall": time.perf_counter() - start[0],
        "processor": time.process_time() - start[1],
        "tokens": lm.tokens_forwarded,
    }


def stubbed(threads: int):
    """A PrefixLM with the real tokeniser, whose passes cost nothing."""
    import torch

    from aurora.eval.prefix import PassRunner, PrefixLM

    torch.set_num_threads(threads)
    logits = torch.randn(1, 32000)
    PassRunner.run = lambda self, step, places=None: logits.expand(len(step.rows), -1)
    model = torch.nn.Linear(1, 1)
    model.config = build_config()
    model.device, model.tie_weights = torch.device("cpu"), lambda: None
    table = torch.nn.Embedding(32000, 1)
    model.get_input_embeddings = lambda: table
    return PrefixLM(model, tokenizer=build_tokenizer(), max_length=4096, batch_tokens=8192, backend="causal")


def part_protocols(data: Path, threads: int) -> dict:
    """Tokens to forward for every question under both protocols, and their CPU work, the model stubbed."""
    from aurora.eval.evaluate import score_benchmarks
    from aurora.eval.paper_protocol import score_paper_protocol
    from aurora.pipeline.params import load_params

    lm, asked = stubbed(threads), subjects(data, 1, None)
    params = load_params(Path(__file__).parent.parent / "profiles" / "paper.yaml").eval
    found = {}
    for name in NAMES:
        lm.tokens_forwarded, start = 0, time.process_time()
        results, _ = score_benchmarks(lm, {name: asked[name]}, params)
        found[f"{name}, lm-eval"] = [results[name]["n"], lm.tokens_forwarded, time.process_time() - start]
        for language in params.paper_protocol.prompts[name]:
            prompts = params.paper_protocol.model_copy(update={"prompts": {name: [language]}})
            lm.tokens_forwarded, start = 0, time.process_time()
            results, _ = score_paper_protocol(
                lm, {name: asked[name]}, params.model_copy(update={"paper_protocol": prompts}), "bos_every_turn"
            )
            key = f"{name}_{language}"
            found[f"{name}, paper, {language}"] = [results[key]["n"], lm.tokens_forwarded, time.process_time() - start]
    return found


def build_config():
    """What the evaluation asks of a model's configuration."""
    from transformers import MixtralConfig

    return MixtralConfig(attn_implementation="sdpa")


def part_decode(threads: int) -> dict:
    """Tokens a second of greedy decoding: ours, transformers' in the same batch, and one by one.

    Once every reply is cut off at its longest, and once each ends where the model says so: the row of </s> in the
    head is made larger until that happens at a place of its own in each reply.
    """
    import torch

    from aurora.eval.replies import generate

    torch.set_num_threads(threads)
    model = build_model()
    draw = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(3, 32000, (int(length),), generator=draw).tolist()
        for length in torch.randint(10, 80, (16,), generator=draw)
    ]
    width, new = max(map(len, prompts)), 48
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(prompts):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1

    def ended(rows, stop: int) -> list[list[int]]:
        return [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in map(list, rows)]

    def batched(stop: int) -> list[list[int]]:
        settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": stop, "pad_token_id": 0}
        return ended(model.generate(ids, attention_mask=mask, **settings)[:, width:].tolist(), stop)

    def one_by_one(stop: int) -> list[list[int]]:
        settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": stop, "pad_token_id": 0}
        rows = [model.generate(torch.tensor([tokens]), **settings)[0, len(tokens) :].tolist() for tokens in prompts]
        return ended(rows, stop)

    runs = {
        "ours": lambda stop: generate(model, prompts, new, frozenset([stop])),
        "transformers, batched": batched,
        "transformers, one by one": one_by_one,
    }
    generate(model, prompts, 2, frozenset([-1]))  # the first call is slower
    found = {}
    for stop in (-1, model.config.eos_token_id):
        if stop > 0:
            with torch.no_grad():
                model.lm_head.weight[stop] *= 2.5
        replies, speeds = {}, {}
        for name, run in runs.items():
            start = time.perf_counter()
            replies[name] = run(stop)
            speeds[name] = sum(map(len, replies[name])) / (time.perf_counter() - start)
        lengths = [len(tokens) for tokens in replies["ours"]]
        equal = all(rows == replies["ours"] for rows in replies.values())
        found[f"{min(lengths)} to {max(lengths)} tokens each"] = {"speeds": speeds, "equal": equal}
    return found


def in_process(part: str, arguments: argparse.Namespace) -> dict:
    """Runs a part in a process of its own."""
    command = [sys.executable, __file__, "--part", part]
    command += ["--questions", str(arguments.questions), "--threads", str(arguments.threads)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=48, help="questions a subject")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("backends", "overhead", "protocols", "decode"), help="One of the tables.")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "AURORA_REAL_DATA" not in os.environ:
        sys.exit("error: AURORA_REAL_DATA names no folder of real data")
    data = Path(os.environ["AURORA_REAL_DATA"]).resolve()
    if arguments.part:
        parts = {
            "stock": lambda: part_backend("stock", data, arguments.questions, arguments.threads),
            "ours": lambda: part_backend("ours", data, arguments.questions, arguments.threads),
            "overhead": lambda: part_overhead(data, arguments.threads),
            "protocols": lambda: part_protocols(data, arguments.threads),
            "decode": lambda: part_decode(arguments.threads),
        }
        print(json.dumps(parts[arguments.part]()))
        return
    tables = {"backends": print_backends, "overhead": print_overhead}
    tables |= {"protocols": print_protocols, "decode": print_decode}
    for name, table in tables.items():
        if arguments.only in (None, name):
            table(arguments)


def print_backends(arguments: argparse.Namespace) -> None:
    """Stock and ours, each in its process, one after the other."""
    ours, stock = (in_process(part, arguments) for part in ("ours", "stock"))
    print(
        f"{ours['questions']} questions, {ours['parameters'] / 1e6:.0f} million parameters, stock at batch size "
        f"{stock['batch']}, {arguments.threads} threads"
    )
    print(f"{'':24}{'stock':>12}{'ours':>12}{'ratio':>8}")
    lines = (
        ("wall time, s", "wall", 1, 1),
        ("processor time, s", "processor", 1, 1),
        ("tokens forwarded", "tokens", 1, 0),
        ("peak above model, MiB", "memory", 2**20, 0),
    )
    for title, key, unit, digits in lines:
        values = [side[key] / unit for side in (stock, ours)]
        print(f"{title:24}{values[0]:12,.{digits}f}{values[1]:12,.{digits}f}{values[0] / values[1]:8.2f}")
    print(f"tokens of 'prefix once per subject': {ours['once']:,}; ours {ours['tokens'] / ours['once']:.3f} of it")
    gaps = [abs(one - other) for one, other in zip(ours["answers"], stock["answers"], strict=True)]
    letters = [
        [max(range(4), key=side["answers"][start : start + 4].__getitem__) for start in range(0, len(gaps), 4)]
        for side in (ours, stock)
    ]
    changed = sum(one != other for one, other in zip(*letters, strict=True))
    print(f"largest difference of a log-probability {max(gaps):.1e}; answers changed: {changed}")


def print_overhead(arguments: argparse.Namespace) -> None:
    """The full suite without a model."""
    full = in_process("overhead", arguments)
    print(
        f"\nCPU work of the full suite, model stubbed: {full['questions']:,} questions in {full['wall']:.1f} s "
        f"({full['processor']:.1f} s of processor), {full['tokens']:,} tokens to forward"
    )


def print_protocols(arguments: argparse.Namespace) -> None:
    """Cost of a question under both protocols."""
    print(f"\n{'':24}{'questions':>10}{'tokens':>12}{'a question':>12}{'CPU, s':>8}")
    for name, (count, tokens, seconds) in in_process("protocols", arguments).items():
        print(f"{name:24}{count:10,}{tokens:12,}{tokens / count:12.0f}{seconds:8.1f}")


def print_decode(arguments: argparse.Namespace) -> None:
    """Greedy decoding, cut off and ended."""
    for lengths, decoded in in_process("decode", arguments).items():
        print(f"\ngreedy decoding, 16 prompts, replies of {lengths}; equal tokens in all: {decoded['equal']}")
        speeds = decoded["speeds"]
        for name, speed in speeds.items():
            print(f"{name:26}{speed:8.1f} tokens/s; ours is {speeds['ours'] / speed:.2f}x of it")


if __name__ == "__main__":
    main()
