"""The claim: conversations become checked, counted rows at close to the speed of the bare tokeniser.

    AURORA_REAL_DATA=FOLDER python benchmarks/format.py [--rows 20000] [--mix 176678] [--llamafactory VENV/bin/python]
    AURORA_REAL_DATA=FOLDER python benchmarks/format.py --template data/raw/model/base [--rows 20000]

The same conversations go through the whole format stage (Parquet in, checks, counts, Parquet out), through the bare
batch encoders (fastokens too, where it is installed), through TRL's own dataset preparation (chat template,
assistant mask) and, where a Python with LLaMA-Factory is given, through its preprocessing. Each leg is a process of
its own, on one core and on two, started in turn; the best of --repeat counts, for TRL and LLaMA-Factory their one
run. Imports and, for these two, the reading of the rows do not count. The rows are those of the folder, repeated with
a number in front so that no two are alike, single to multi round as in the paper (141,345 : 35,333). The last lines are of --mix conversations: the stage on two cores, and TRL's packing of its rows,
as the sft stage starts with it. With --template it is the stage alone, in the chat template of a model folder.
"""

import contextlib
import importlib.util
import inspect
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

MEASURES = ("aurora/format", "aurora/prompt")

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from stand_ins.real_rows import real_conversations  # noqa: E402

SINGLE, MULTI = 141_345, 35_333  # conversations of the paper's mix
MAX_LENGTH = 4096


def clock() -> tuple[float, float]:
    """Seconds on the clock, and CPU seconds of this process and of the workers that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


def since(start: tuple[float, float]) -> dict:
    """Both since `start`; the second does not depend on what else the machine does."""
    seconds, cpu = clock()
    return {"seconds": seconds - start[0], "cpu": cpu - start[1]}


def write_conversations(talks: list[list[tuple[str, str]]], count: int, path: Path) -> None:
    """`count` distinct conversations in the mix of the paper, as the clean stage writes them."""
    import pyarrow
    import pyarrow.parquet

    from aurora.core.messages import Round, content_id

    source = random.Random(0)
    kinds = {True: [talk for talk in talks if len(talk) == 1], False: [talk for talk in talks if len(talk) > 1]}
    rows = {}
    for number in range(count):
        single = number % (SINGLE + MULTI) * SINGLE // (SINGLE + MULTI) != (
            (number % (SINGLE + MULTI) + 1) * SINGLE // (SINGLE + MULTI)
        )
        first, *rest = source.choice(kinds[single])
        turns = [turn for pair in [(f"{number} {first[0]}", first[1]), *rest] for turn in pair]
        messages = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
        key = content_id(tuple(map(Round, turns[::2], turns[1::2])))
        rows[key] = ("single" if single else "multi", messages)
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    ids = sorted(rows)
    columns = {
        "id": ids,
        "source": [rows[key][0] for key in ids],
        "position": pyarrow.array(range(len(ids)), pyarrow.int64()),
        "messages": pyarrow.array([rows[key][1] for key in ids], pyarrow.list_(turn)),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=8192)


def texts_of(path: Path) -> list[str]:
    """What the stage hands to the tokeniser."""
    import pyarrow.parquet

    from aurora.prompt.mistral import prompt_text

    turns = pyarrow.parquet.read_table(path)["messages"].combine_chunks().flatten()
    pairs = zip(turns.field("role").to_pylist(), turns.field("content").to_pylist(), strict=True)
    return [prompt_text(content) if role == "user" else content for role, content in pairs]


def leg_ours(path: Path, model_file: Path, workers: int, folder: Path, prompt: str = "mistral") -> dict:
    import pandas  # noqa: F401 (pyarrow brings it in; imports do not count)
    from tqdm import tqdm  # noqa: F401

    from aurora.format.format import format_rows
    from aurora.format.params import Format

    rules = Format(prompt=prompt, max_length=MAX_LENGTH, long_conversation="continue", long_round="drop", held_out=0.01)
    start = clock()
    metrics = format_rows(path, model_file, folder / "rows", rules, threads=workers)
    more = {key: metrics[key] for key in ("packing_efficiency", "tokens_per_chinese_character")}
    return {**since(start), "tokens": metrics["tokens"], **more}


def leg_sentencepiece(path: Path, model_file: Path, workers: int, folder: Path) -> dict:
    from aurora.prompt.tokenizer import sentencepiece_processor

    processor, texts = sentencepiece_processor(model_file), texts_of(path)
    start = clock()
    tokens = 0
    for first in range(0, len(texts), 4096):
        tokens += sum(map(len, processor.encode(texts[first : first + 4096], num_threads=workers)))
    return {**since(start), "tokens": tokens}


def leg_sentencepiece_numpy(path: Path, model_file: Path, workers: int, folder: Path) -> dict:
    from aurora.prompt.mistral import encode_texts
    from aurora.prompt.tokenizer import sentencepiece_processor

    processor, texts = sentencepiece_processor(model_file), texts_of(path)
    start = clock()
    tokens = 0
    for first in range(0, len(texts), 4096):
        tokens += sum(map(len, encode_texts(processor, texts[first : first + 4096], workers)))
    return {**since(start), "tokens": tokens}


def leg_fastokens(path: Path, model_file: Path, workers: int, folder: Path) -> dict:
    import fastokens
    import numpy

    from aurora.prompt.mistral import encode_texts
    from aurora.prompt.tokenizer import sentencepiece_processor
    from aurora.small_base.tokenizer_folder import fast_tokenizer

    texts = texts_of(path)
    tokenizer = fastokens.Tokenizer.from_json_str(fast_tokenizer(model_file).to_str())
    start = clock()
    batches = [
        tokenizer.encode_batch_flat(texts[first : first + 4096], False, True)[0] for first in range(0, len(texts), 4096)
    ]
    measured = since(start)
    found = numpy.frombuffer(b"".join(batches), numpy.uint32)
    expected = numpy.concatenate(encode_texts(sentencepiece_processor(model_file), texts, workers))
    return {**measured, "tokens": len(found), "same": bool(numpy.array_equal(found, expected))}


def leg_tokenizers(path: Path, model_file: Path, workers: int, folder: Path) -> dict:
    from aurora.small_base.tokenizer_folder import fast_tokenizer

    tokenizer, texts = fast_tokenizer(model_file), texts_of(path)
    start = clock()
    tokens = 0
    for first in range(0, len(texts), 4096):
        batch = tokenizer.encode_batch(texts[first : first + 4096], add_special_tokens=False)
        tokens += sum(len(item.ids) for item in batch)
    return {**since(start), "tokens": tokens}


def trainer_preparation(rows: object, model_file: Path, folder: Path, **options: object) -> tuple[dict, dict]:
    """Time that an SFTTrainer takes over its rows, and the number of prepared rows and their tokens."""
    import pyarrow.compute
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM
    from trl import SFTConfig, SFTTrainer

    from aurora.small_base.tokenizer_folder import write_tokenizer

    write_tokenizer(model_file, folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=32000, num_key_value_heads=1, num_local_experts=2, **sizes))
    prepare = SFTTrainer._prepare_dataset
    measured = {}

    def timed(*args: object, **kwargs: object) -> object:
        start = clock()
        result = prepare(*args, **kwargs)
        measured.update(since(start))
        return result

    SFTTrainer._prepare_dataset = timed
    arguments = SFTConfig(
        output_dir=str(folder / "trl"), max_length=MAX_LENGTH, report_to="none", use_cpu=True, **options
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    lengths = pyarrow.compute.list_value_length(trainer.train_dataset.data.table["input_ids"])
    return measured, {"rows": len(lengths), "tokens": pyarrow.compute.sum(lengths).as_py()}


def leg_trl(path: Path, model_file: Path, workers: int, folder: Path) -> dict:
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    processes = workers if workers > 1 else None
    measured, prepared = trainer_preparation(
        rows.select_columns(["messages"]),
        model_file,
        folder,
        packing=False,
        assistant_only_loss=True,
        dataset_num_proc=processes,
    )
    return {**measured, "tokens": prepared["tokens"]}


def leg_packing(path: Path, model_file: Path, workers: int, folder: Path) -> dict:
    """What SFTTrainer does to the rows of the stage before its first step, when it packs them."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    measured, packed = trainer_preparation(
        rows.select_columns(["input_ids", "labels"]), model_file, folder, packing=True
    )
    return {**measured, "tokens": packed["tokens"], "packed": packed["rows"]}


LEGS = {
    "aurora, whole stage": leg_ours,
    "tokenizers encode_batch, bare": leg_tokenizers,
    "sentencepiece encode, bare": leg_sentencepiece,
    "the same, to NumPy arrays": leg_sentencepiece_numpy,
    "TRL, dataset preparation": leg_trl,
}
ONCE = ("TRL, dataset preparation", "LLaMA-Factory, preprocessing")  # a tenth as fast: one run suffices
if importlib.util.find_spec("fastokens"):
    LEGS["fastokens encode_batch_flat, bare"] = leg_fastokens
# Runs under the Python of LLaMA-Factory's own environment, which knows nothing of aurora.
LLAMA_FACTORY = (
    "import json, resource, sys, time\n"
    + inspect.getsource(clock)
    + inspect.getsource(since)
    + """
folder, tokenizer, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
arguments = dict(model_name_or_path=tokenizer, stage="sft", do_train=True, template="mistral", dataset="bench",
    dataset_dir=folder, cutoff_len=4096, output_dir=folder + "/lf", overwrite_cache=True, use_cpu=True,
    preprocessing_num_workers=workers if workers > 1 else None, report_to="none")
model_args, data_args, training_args, _, _ = get_train_args(arguments)
tokenizer_module = load_tokenizer(model_args)
template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
start = clock()
data = get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
measured = since(start)
measured["tokens"] = sum(len(row) for row in data["train_dataset"]["input_ids"])
print(json.dumps(measured))
"""
)


def run_leg(command: list[str], workers: int) -> dict:
    """Runs a leg on `workers` cores; returns what its last line of JSON says, and the peak memory in bytes."""
    import psutil

    cores = sorted(os.sched_getaffinity(0))[:workers]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": str(workers),
        "TOKENIZERS_PARALLELISM": "true",
    }
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    peak = 0
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # a worker may just have ended
            processes = [tree, *tree.children(recursive=True)]
            peak = max(peak, sum(each.memory_full_info().pss for each in processes))  # shared pages count once
        time.sleep(0.5)
    output, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{' '.join(command[:3])} failed:\n{errors[-2000:]}")
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {**lines[-1], "peak": peak}


def show(results: dict[tuple[str, int], dict]) -> None:
    """A table; `aurora is` tells how many times its tokens a second, and a CPU second, are those of the leg."""
    click.echo(
        f"{'':34} {'cores':>5} {'seconds':>8} {'CPU s':>7} {'M tokens':>9} {'M tokens/s':>10} "
        f"{'aurora is':>10} {'by CPU':>8} {'peak GiB':>9}"
    )
    for (name, workers), leg in results.items():
        ours = results["aurora, whole stage", workers]
        ratios = [ours["tokens"] / ours[unit] * leg[unit] / leg["tokens"] for unit in ("seconds", "cpu")]
        click.echo(
            f"{name:34} {workers:5} {leg['seconds']:8.2f} {leg['cpu']:7.2f} {leg['tokens'] / 1e6:9.2f} "
            f"{leg['tokens'] / leg['seconds'] / 1e6:10.2f} {ratios[0]:9.2f}x {ratios[1]:7.2f}x "
            f"{leg['peak'] / 2**30:9.2f}"
        )


@click.command()
@click.option("--rows", default=20_000, show_default=True, help="Conversations of the comparison.")
@click.option("--mix", default=SINGLE + MULTI, show_default=True, help="Conversations of the last line; 0 omits it.")
@click.option("--repeat", default=3, show_default=True)
@click.option("--llamafactory", type=click.Path(exists=True), help="Python of an environment with LLaMA-Factory.")
@click.option("--template", type=click.Path(exists=True, path_type=Path), help="A model folder.")
@click.option("--leg", hidden=True)
@click.option("--workers", hidden=True, type=int)
@click.option("--path", hidden=True, type=click.Path(path_type=Path))
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    rows: int,
    mix: int,
    repeat: int,
    llamafactory: str | None,
    template: Path | None,
    leg: str | None,
    workers: int | None,
    path: Path | None,
    folder: Path | None,
) -> None:
    """Compare the format stage with the bare tokenisers, TRL and LLaMA-Factory."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    model_file = MistralTokenizer._data_path() / "tokenizer.model.v1"
    if leg:
        run = {**LEGS, "packing": leg_packing}[leg]
        click.echo(json.dumps(run(path, model_file, workers, folder)))
        return
    if "AURORA_REAL_DATA" not in os.environ:
        raise click.ClickException("AURORA_REAL_DATA names no folder of real data")
    talks = real_conversations(Path(os.environ["AURORA_REAL_DATA"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "conversations.parquet"
        write_conversations(talks, rows, path)
        if template:
            result = leg_ours(path, template.resolve(), 2, folder, "chat_template")
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            click.echo(
                f"{rows:,} conversations in a chat template, 2 cores: {result['seconds']:.1f} s, {result['cpu']:.1f} CPU s, "
                f"{result['tokens'] / 1e6:.1f} M tokens, peak {peak:.2f} GiB"
            )
            return
        legs = {leg: [sys.executable, __file__, "--leg", leg, "--path", str(path)] for leg in LEGS}
        if llamafactory:
            legs["LLaMA-Factory, preprocessing"] = prepare_llamafactory(llamafactory, path, model_file, folder)
        results: dict[tuple[str, int], dict] = {}
        for again in range(repeat):
            for workers, (leg, command) in itertools.product((1, 2), legs.items()):
                if again and leg in ONCE:
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    own = leg in LEGS
                    more = ["--workers", str(workers), "--folder", scratch] if own else [str(workers)]
                    result = run_leg([*command, *more], workers)
                best = results.get((leg, workers), result)
                results[leg, workers] = min(best, result, key=lambda each: each["seconds"])
        click.echo(f"{rows:,} conversations of real rows, max_length {MAX_LENGTH}")
        show(dict(sorted(results.items(), key=lambda item: item[0][1])))
        if mix:
            write_conversations(talks, mix, path)
            command = [sys.executable, __file__, "--workers", "2", "--folder", name]
            result = run_leg([*command, "--leg", "aurora, whole stage", "--path", str(path)], 2)
            click.echo(
                f"{mix:,} conversations of the paper's mix, 2 cores: {result['seconds']:.1f} s, "
                f"{result['tokens'] / 1e6:.1f} M tokens, peak {result['peak'] / 2**30:.2f} GiB, "
                f"packing efficiency {result['packing_efficiency']:.4f}, "
                f"{result['tokens_per_chinese_character']:.3f} tokens a Chinese character"
            )
            path = folder / "rows" / "train.parquet"
            result = run_leg([*command, "--leg", "packing", "--path", str(path)], 2)
            full = result["tokens"] / (result["packed"] * MAX_LENGTH)
            click.echo(
                f"TRL packs its training rows in {result['seconds']:.1f} s, peak {result['peak'] / 2**30:.2f} GiB, "
                f"into {result['packed']:,} rows, {full:.4f} full"
            )


def prepare_llamafactory(python: str, path: Path, model_file: Path, folder: Path) -> list[str]:
    """Writes the rows and a tokeniser for LLaMA-Factory; returns the command, which takes the workers last."""
    import pyarrow.parquet

    from aurora.small_base.tokenizer_folder import write_tokenizer

    write_tokenizer(model_file, folder / "tokenizer")
    (folder / "tokenizer" / "config.json").write_text('{"model_type": "mixtral"}')
    rows = [{"messages": messages} for messages in pyarrow.parquet.read_table(path)["messages"].to_pylist()]
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"bench": entry}))
    return [python, "-c", LLAMA_FACTORY, str(folder), str(folder / "tokenizer")]


if __name__ == "__main__":
    main()
