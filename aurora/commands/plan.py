"""The `aurora plan` command: a plan of what params.yaml asks for, whether its inputs are there yet or not."""

import dataclasses
import json
import shlex
import sys
from itertools import pairwise
from math import ceil, prod
from pathlib import Path

import click

from aurora.commands.findings import link_type
from aurora.commands.roofline import training_limits
from aurora.core.errors import DataError, ModelError, exit_with_message
from aurora.core.parquet import read_parquet
from aurora.core.yaml_files import read_yaml
from aurora.eval.evaluate import read_subjects
from aurora.eval.held_out import SLICE
from aurora.eval.params import Eval
from aurora.format.row_statistics import packed_in_order
from aurora.model.folder import meta_model, read_config
from aurora.model.machine import GIB, card_memory, default_device, machine
from aurora.model.packed_cache import WORTH
from aurora.model.sizes import BYTES, held_bytes, largest_arrival
from aurora.pipeline.lock_file import require_no_conflict
from aurora.pipeline.params import Params, load_params
from aurora.pipeline.reasons import cache_error
from aurora.sft.footprint import inference_memory
from aurora.sft.params import Sft
from aurora.sft.plan import Plan, Rows, check, disk_left, measure_rows, read_speed, training_plan

# Tokens to forward for a question with five shots, what prompts share counted once, over all questions of a benchmark in
# the vocabulary of Mixtral: benchmarks/eval.py --only protocols.
QUESTION_TOKENS = {
    "lm_eval": {"ceval": 144, "mmlu": 107, "cmmlu": 100},
    "paper": {"ceval": 558, "mmlu": 150, "cmmlu": 219},
}
QUESTIONS = {"ceval": (52, 1346), "mmlu": (57, 14042), "cmmlu": (67, 11582)}  # subjects and questions, as published
SHAPES = read_yaml(Path(__file__).with_name("shapes.yaml"))
TOKENS_A_ROW = 573  # mean of the paper's mix, benchmarks/format.py


def stage_paths(stage: str = "sft", file: Path = Path("dvc.yaml")) -> dict[str, Path]:
    """The options of a stage's command in dvc.yaml, the only place that has the paths."""
    from ruamel.yaml import YAML

    try:
        entry = YAML(typ="safe").load(file.read_text(encoding="utf-8"))["stages"][stage]
        command = shlex.split(entry.get("do", entry)["cmd"])
    except (OSError, KeyError, TypeError):
        raise DataError(f"{file}: no stage {stage}; run this in the root of the repository") from None
    return {name.removeprefix("--"): Path(value) for name, value in pairwise(command) if name.startswith("--")}


def is_current(target: str) -> bool:
    """Whether DVC finds nothing to do for a stage and those before it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return not repo.status(targets=[target], with_deps=True)
    except DvcException:
        return False
    except OSError as error:
        raise cache_error(error) from None


def shape_of(params: Params, base: Path):
    """A model of the base's shape on the meta device, and where the shape is from.

    Raises ModelError for a base that is not fetched and whose shape is not known beforehand.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, MixtralConfig

    source = params.all_sources["base"]
    if is_current(params.fetch_stage("base")):
        return meta_model(base), base.as_posix()
    if source.address.scheme == "embedded":
        config, known = MixtralConfig(**read_config(Path(source.uri))), source.uri
    elif name := next((name for name in SHAPES if name.lower() in source.uri.lower()), None):
        config = CONFIG_MAPPING[SHAPES[name]["model_type"]](**SHAPES[name])
        known = f"the shape of {name}; the base is not fetched yet"
    else:
        raise ModelError(
            f"{base}: not fetched, and the shape of {source.uri} is not known: dvc repro {params.fetch_stage('base')}"
        )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), known


def arrival_of(params: Params, skeleton, base: Path) -> int:
    """Bytes of the largest dense tensor while loading; experts come one by one where the base is not fetched yet."""
    if is_current(params.fetch_stage("base")):
        return largest_arrival(base, skeleton, params.quantization)
    if params.quantization.bits != 4:
        return 0
    sizes = (prod(tensor.shape[-2:]) for tensor in skeleton.parameters())
    return max(sizes) * BYTES[params.quantization.compute_dtype]


def rows_of(params: Params, rows: Path) -> Rows:
    """Rows as format left them, or an estimate from the numbers of rows that params.yaml states.

    Raises DataError where neither is there.
    """
    if is_current("format"):
        found, packing = measure_rows(rows / "train.parquet"), params.sft.packing
        return dataclasses.replace(found, packed=packed_count(rows, params.sft)) if packing else found
    counts = {name: source.rows for name, source in params.all_sources.items() if source.kind == "instructions"}
    missing = [name for name, count in counts.items() if count is None]
    if missing:
        raise DataError(
            f"{rows}: not up to date, and sources.{missing[0]} states no number of rows to estimate from: dvc repro format"
        )
    count = ceil(sum(count or 0 for count in counts.values()) * (1 - params.format.held_out))
    length = params.format.max_length
    note = f"estimate: rows of params.yaml, {TOKENS_A_ROW} tokens each; dvc repro format counts them"
    return Rows(count, count * min(TOKENS_A_ROW, length), length, length, note)


def packed_count(rows: Path, sft: Sft) -> int:
    """Packed rows that TRL makes of those of the format stage."""
    table = read_parquet(rows / "train.parquet", "format", ["input_ids"])
    return packed_in_order(table["input_ids"].combine_chunks().value_lengths().to_pylist(), sft.packing_length)


def disk_of(params: Params, skeleton, paths: dict[str, Path]) -> dict[str, int]:
    """Bytes still to be written by fetch and merge and for DVC's cache, by what they are."""
    size = sum(tensor.numel() for tensor in skeleton.parameters()) * 2  # published in bfloat16
    if is_current(params.fetch_stage("base")):
        left = {"base": 0} | disk_left(paths["base"], skeleton, params.quantization)
    else:
        kept = params.quantization.bits == 4 and size >= WORTH
        packed = held_bytes(skeleton, params.quantization) if kept else 0
        left = {"base": size, "packed base": packed, "merged model": size}
    if is_current("merge"):  # else one of an earlier run stays in DVC's cache, and a new one is written beside it
        left["merged model"] = 0
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            kind = link_type(
                Path(repo.cache.local.path), repo.config["cache"].get("type") or ["reflink", "copy"], Path()
            )
    except DvcException:
        kind = "copy"
    except OSError as error:
        raise cache_error(error) from None
    left[f"DVC cache ({kind})"] = left["base"] + left["merged model"] if kind == "copy" else 0
    return left


def protocol_costs(settings: Eval, benchmarks: Path) -> dict[str, tuple[int, int]]:
    """Questions and tokens to forward for one model under each protocol of eval.protocols.

    Questions are counted where the benchmarks are fetched, and else those that are published; tokens are estimated for
    five shots.
    """
    counts = {  # subjects and questions
        name: (QUESTIONS[name][0], min(QUESTIONS[name][1], QUESTIONS[name][0] * (task.limit or QUESTIONS[name][1])))
        for name, task in settings.tasks.items()
    }
    if all((benchmarks / name).is_dir() for name in counts):
        subjects = read_subjects(benchmarks, settings)
        counts = {
            name: (len(members), sum(len(subject.questions) for subject in members))
            for name, members in subjects.items()
        }
    runs = {str(name): len(languages) for name, languages in settings.paper_protocol.prompts.items()}
    found: dict[str, tuple[int, int]] = {}
    for protocol in settings.protocols:
        asked = {name: questions for name, (_, questions) in counts.items()}
        if protocol == "paper":  # MMLU without the first row of each file, and each language on its own
            if "mmlu" in asked:
                asked["mmlu"] -= counts["mmlu"][0]
            asked = {name: number * runs.get(name, 0) for name, number in asked.items()}
        tokens = sum(number * QUESTION_TOKENS[protocol][name] for name, number in asked.items())
        found[protocol] = sum(asked.values()), tokens
    return found


def report(
    plan: Plan,
    where: str,
    device: str,
    speed: float | None,
    from_run: bool,
    costs: dict[str, tuple[int, int]],
    limits: dict[str, dict[str, float | bool]],
) -> str:
    """The plan as text."""
    lines = [
        f"model       {plan.parameters:,} parameters, {plan.trainable:,} trained ({where})",
        f"rows        {plan.rows.rows:,}, {plan.rows.tokens:,} tokens an epoch, longest {plan.rows.longest:,}"
        f" ({plan.rows.source})",
        f"steps       {plan.steps:,} of {plan.effective_batch} rows, {plan.epoch_steps:,} an epoch;"
        f" {plan.tokens:,} tokens in all",
        f"device      {device}; {plan.processes} processes",
    ]
    lines.append(f"{'loading':<12}{plan.loading / GIB:.2f} GiB at the peak, a process")
    for title, parts in (("training", plan.training), ("inference", plan.inference)):
        lines.append(f"{title:<12}{sum(parts.values()) / GIB:.2f} GiB at the peak, a process")
        lines += [f"{'':<12}{size / GIB:>10.2f}  {name}" for name, size in parts.items()]
    for protocol, (questions, tokens) in costs.items():
        shots = ", drawn anew for each question" if protocol == "paper" else ""
        lines.append(
            f"{'questions':<12}{questions:,} under {protocol}, about {tokens:,} tokens a model, five shots{shots}"
        )
    lines.append(f"{'disk':<12}{sum(plan.disk.values()) / GIB:.2f} GiB still to be written")
    lines += [f"{'':<12}{size / GIB:>10.2f}  {name}" for name, size in plan.disk.items()]
    if speed:
        origin = "of the last training here" if from_run else "as given"
        lines.append(f"{'time':<12}{plan.tokens / speed / 3600:.2f} hours at {speed:,.0f} tokens/s, {origin}")
    else:
        lines.append(f"{'time':<12}unknown before a first run; give --tokens-per-second")
    if limits:
        lines.append(f"{'limits':<12}of training, by a card's data sheet; nothing of this was measured")
    for name, limit in limits.items():
        said = f"at most {limit['tokens_per_second']:>7,.0f} tokens/s, at least {limit['hours']:.1f} hours"
        room = said if limit["fits"] else "too small"
        lines.append(f"{'':<12}{name:<15}{limit['gib']:>7.2f} GiB  {room}")
    return "\n".join(lines)


def plan_of(params: Params, skeleton, arrival: int, rows: Rows, disk: dict[str, int], card: int | None) -> Plan:
    """The plan of training and evaluation for a model of this shape, `skeleton` being on the meta device.

    `arrival` is the size in bytes of the largest tensor that arrives dense while the model is loaded; `card` the memory
    of the card, None for a CPU.
    """
    found = training_plan(params.sft, params.quantization, skeleton, arrival, rows, disk, card)
    settings, longest = params.eval, max(rows.longest, params.format.max_length)
    tokens = max(settings.batch_tokens, longest)  # a longer row stands alone
    reply = min(longest + settings.replies.max_new_tokens, settings.max_length)
    inference = inference_memory(
        skeleton, params.quantization, tokens, settings.max_length, settings.replies.batch_size * reply, SLICE, card
    )
    return dataclasses.replace(found, inference=inference)


@click.command()
@click.option(
    "--tokens-per-second", type=click.FloatRange(min=0, min_open=True), help="Speed, if not that of the last run here."
)
@click.option(
    "--memory-gib", type=click.FloatRange(min=0, min_open=True), help="Memory of the card, if not this machine's."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@exit_with_message
def plan(tokens_per_second: float | None, memory_gib: float | None, as_json: bool) -> None:
    """Print steps, tokens, memory, disk and hours of a training; fails if the machine is too small for it.

    For a card, this machine's or that of --memory-gib, also what the data sheets of well-known cards allow at most.
    """
    require_no_conflict()
    params, paths = load_params(), stage_paths()
    skeleton, where = shape_of(params, paths["base"])
    arrival = arrival_of(params, skeleton, paths["base"])
    rows, disk = rows_of(params, paths["rows"]), disk_of(params, skeleton, paths)
    card = card_memory(default_device()) if memory_gib is None else int(memory_gib * GIB)
    planned = plan_of(params, skeleton, arrival, rows, disk, card)
    limits = {} if card is None else training_limits(planned, skeleton, params.sft, params.quantization)
    found = machine()
    device = f"{found.name}, {found.memory / GIB:.2f} GiB free"
    if memory_gib is not None:
        device = f"a card of {memory_gib:g} GiB, as given"
    measured = read_speed(paths["base"], params.sft.processes)
    speed = tokens_per_second or measured
    costs = protocol_costs(params.eval, stage_paths("eval")["benchmarks"])
    if as_json:
        hours = planned.tokens / speed / 3600 if speed else None
        click.echo(
            json.dumps(
                dataclasses.asdict(planned)
                | {
                    "tokens_per_second": speed,
                    "hours": hours,
                    "limits": limits,
                    "questions": {
                        name: {"questions": number, "tokens": tokens} for name, (number, tokens) in costs.items()
                    },
                },
                indent=2,
            )
        )
    else:
        click.echo(report(planned, where, device, speed, not tokens_per_second, costs, limits))
    sys.stdout.flush()
    check(planned, None if memory_gib is None else int(memory_gib * GIB))
