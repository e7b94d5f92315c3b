"""What a model can do: benchmarks under lm-eval, loss on held-out rows, and replies to Chinese prompts."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.benchmarks.read import LETTERS
from aurora.core.files import write_json
from aurora.core.messages import PromptName
from aurora.core.parquet import write_parquet
from aurora.eval.benchmarks import Subject, read_benchmark
from aurora.eval.params import Benchmark, Eval
from aurora.eval.prompt_set import answer_prompt_set, read_prompt_set
from aurora.eval.prompt_sources import answer_sources, encode_sources, read_prompt_sources
from aurora.model.quantization import Quantization

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedModel

    from aurora.eval.prefix import PrefixLM


def evaluate(
    model_folder: Path,
    benchmarks: Path,
    rows: Path,
    prompts: Path,
    out: Path,
    params: Eval,
    quantization: Quantization,
    form: PromptName,
    own_tasks: Path | None = None,
    prompt_sources: Path | None = None,
) -> dict:
    """Evaluates a model folder and writes results.json, questions.parquet, replies.parquet and prompts.parquet.

    Where params ask for them, the answers under the paper's own protocol go to paper_questions.parquet, and the
    router's first choices to router.parquet.

    `form` is the prompt in which the rows were formatted, `own_tasks` a folder of task files beside lm-eval's, and
    `prompt_sources` a folder of fetched sources of kind prompts, whose replies go to files of their names. A killed run
    goes on where it was: what is computed lies
    under .aurora until the end. Raises DataError for benchmark files, rows and prompts that break their format,
    ModelError for a folder that is no such model, ParamsError for a task that lm-eval does not know, and
    SourceError for one whose data is not available.
    """
    # Before the model, since a mistake here is cheap to find.
    subjects = read_subjects(benchmarks, params)
    check_subjects(subjects)
    dialogues = read_prompt_set(prompts)
    sources = read_prompt_sources(prompt_sources) if prompt_sources else []
    others = load_other_tasks(params, own_tasks)

    import torch

    from aurora.eval.held_out import held_out_loss
    from aurora.eval.paper_protocol import score_paper_protocol
    from aurora.eval.prefix import PrefixLM
    from aurora.eval.replies import answer_prompts
    from aurora.eval.resume_cache import digest_of, open_resume_cache
    from aurora.eval.router import router_statistics
    from aurora.model.loading import load_model, load_tokenizer

    torch.set_num_threads(params.threads)
    tokenizer = load_tokenizer(model_folder)
    encoded = encode_sources(tokenizer, sources, form, params.replies, params.max_length)
    model = load_model(model_folder, quantization).eval()
    digest = digest_of(model_folder)
    memory = open_resume_cache(digest, quantization.model_dump())
    lm = PrefixLM(
        model,
        tokenizer=tokenizer,
        batch_tokens=params.batch_tokens,
        max_length=min(params.max_length, model.config.get_text_config().max_position_embeddings),
        memory=memory,
    )
    results, questions = score_benchmarks(lm, subjects, params)
    if "paper" in params.protocols:
        results["paper"], asked = score_paper_protocol(lm, subjects, params, form)
        write_parquet(out / "paper_questions.parquet", asked)
    if params.router_tokens:
        results["router"], choices = router_statistics(
            model, tokenizer, subjects, params.router_tokens, params.batch_tokens
        )
        write_parquet(out / "router.parquet", choices)
    if others:
        results["other"], results["other_too_long"] = score_other_tasks(lm, others, params)
    results["loss"] = held_out_loss(model, rows, params.loss_rows, params.batch_tokens, memory)
    metrics, replies = answer_prompts(model, tokenizer, rows, params.replies, lm.max_length, memory)
    results |= {"replies": len(replies)} | metrics
    results["prompts"], answers = answer_prompt_set(
        model, tokenizer, dialogues, form, params.replies, lm.max_length, memory
    )
    results |= answer_sources(model, tokenizer, sources, encoded, params.replies, out, digest[:12], memory)
    results["memory"] = held_memory(model_folder, model, quantization)
    results["protocol"] = {
        "tasks": {name: task.model_dump() for name, task in params.tasks.items()},
        "chat_template": params.chat_template,
        "paper_protocol": params.paper_protocol.model_dump() if "paper" in params.protocols else None,
        "fewshot_as_multiturn": params.chat_template,
        "max_length": lm.max_length,
        "quantization": quantization.model_dump(),
        "lm_eval": version("lm-eval"),
        "model_sha256": digest,
    }
    write_json(out / "results.json", results)
    write_parquet(out / "questions.parquet", questions)
    write_parquet(out / "replies.parquet", replies)
    write_parquet(out / "prompts.parquet", answers)
    memory.forget()
    if torch.cuda.is_available():  # to the log alone: a run that was killed and goes on has another peak
        print(f"peak on the card: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB", file=sys.stderr)
    return results


def held_memory(folder: Path, model: "PreTrainedModel", quantization: Quantization) -> dict[str, int]:
    """Bytes of the weights: as planned before loading, as the loaded tensors hold them, and as planned for the
    shape of Mixtral-8x7B in these bits."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    from aurora.model.folder import meta_model
    from aurora.model.sizes import held_bytes

    tensors = list(model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code]
            tensors += [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
    with torch.device("meta"):
        large = MixtralForCausalLM(MixtralConfig())
    return {
        "planned": held_bytes(meta_model(folder), quantization),
        "held": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "planned_mixtral_8x7b": held_bytes(large, quantization),
    }


def read_subjects(benchmarks: Path, params: Eval) -> dict[Benchmark, list[Subject]]:
    """Subjects of each benchmark that the params name, in their order."""
    return {
        name: read_benchmark(benchmarks / name, name, task.num_fewshot, task.limit)
        for name, task in params.tasks.items()
    }


def check_subjects(subjects: dict[Benchmark, list[Subject]]) -> None:
    """Raises DataError for a subject that lm-eval does not know."""
    from aurora.eval.tasks import task_file

    for benchmark, members in subjects.items():
        for subject in members:
            task_file(benchmark, subject.name)


def score_benchmarks(
    lm: "PrefixLM", subjects: dict[Benchmark, list[Subject]], params: Eval
) -> tuple[dict, "pyarrow.Table"]:
    """Scores by benchmark, category and subject, and a table with one row for each question.

    Prompts, scoring and averages are those of `lm_eval.evaluate` on its stock tasks: `acc` of a benchmark or
    category is the average over its questions.
    """
    from lm_eval import evaluate as lm_evaluate

    from aurora.eval.tasks import group_name, load_groups, load_task

    tasks, groups, owners = {}, {}, {}
    for benchmark, members in subjects.items():
        loaded = {}
        for subject in members:
            task = load_task(benchmark, subject, params.tasks[benchmark].num_fewshot)
            loaded[task.task_name] = task
            owners[task.task_name] = (benchmark, subject.name)
        groups |= load_groups(benchmark, loaded)
        tasks |= loaded
    found = lm_evaluate(
        lm,
        {"tasks": tasks, "groups": groups},
        apply_chat_template=params.chat_template,
        fewshot_as_multiturn=params.chat_template,  # as `lm_eval --apply_chat_template` does
        log_samples=True,
    )
    scores = found["results"]
    table, cut = questions_table(found["samples"], owners, lm.cut)
    results: dict = {
        benchmark: _score(scores[group_name(benchmark)], scores, _names(owners, benchmark)) for benchmark in subjects
    }
    results["too_long"] = cut
    results["categories"] = {
        name: _score(scores[name], scores, list(group.child_names))
        for name, group in groups.items()
        if name not in map(group_name, subjects)
    }
    results["subjects"] = {
        f"{benchmark}_{subject}": _score(scores[task], scores, [task]) for task, (benchmark, subject) in owners.items()
    }
    return results, table


def _names(owners: dict[str, tuple[str, str]], benchmark: str) -> list[str]:
    return [task for task, (owner, _) in owners.items() if owner == benchmark]


def _score(score: dict, scores: dict[str, dict], members: list[str]) -> dict:
    # lm-eval gives no standard error where a subject has a single question; then that of all questions takes its place.
    count = sum(scores[name]["sample_len"] for name in members)
    accuracy, error = score["acc,none"], score["acc_stderr,none"]
    if not isinstance(error, float):
        error = (accuracy * (1 - accuracy) / max(1, count - 1)) ** 0.5
    return {"acc": accuracy, "stderr": error, "n": count}


def questions_table(
    samples: dict[str, list[dict]], owners: dict[str, tuple[str, str]], cut: dict[str, int]
) -> tuple["pyarrow.Table", int]:
    """One row for each question, and the number of prompts that lost their beginning.

    Columns: task, subject, category (None where lm-eval has none), id (position in the subject's file, from 0), prediction, target, log-probabilities of
    the four letters in nats, and the number of tokens that a prompt beyond the context has lost.
    """
    import pyarrow

    from aurora.eval.tasks import category_of

    columns: dict[str, list] = {name: [] for name in ("task", "subject", "category", "id", "prediction", "target")}
    values: dict[str, list] = {f"logprob_{letter.lower()}": [] for letter in LETTERS}
    lost: list[int] = []
    for name, (benchmark, subject) in owners.items():
        category = category_of(benchmark, name)
        for sample in samples[name]:
            logprobs = [value for value, _ in sample["filtered_resps"]]
            best = max(range(len(LETTERS)), key=logprobs.__getitem__)  # the first of equals, as lm-eval's argmax
            row = (benchmark, subject, category, sample["doc_id"], LETTERS[best], LETTERS[sample["target"]])
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            for column, value in zip(values.values(), logprobs, strict=True):
                column.append(value)
            lost.append(cut.get(sample["arguments"][0][0], 0))
    if any(lost):
        print(
            f"{sum(map(bool, lost))} prompts are longer than the context and were cut at their beginning; "
            "questions.parquet names them under cut_tokens",
            file=sys.stderr,
        )
    types = {"id": pyarrow.int64()} | dict.fromkeys(values, pyarrow.float32())
    arrays = {
        name: pyarrow.array(column, types.get(name, pyarrow.string())) for name, column in (columns | values).items()
    }
    arrays["cut_tokens"] = pyarrow.array(lost, pyarrow.int32())
    return pyarrow.table(arrays), sum(map(bool, lost))


def load_other_tasks(params: Eval, own_tasks: Path | None = None) -> dict[str, dict]:
    """Further lm-eval tasks by name, as `load_other_task` gives them."""
    if not params.other_tasks:
        return {}
    from aurora.eval.tasks import load_other_task

    return {name: load_other_task(name, task.num_fewshot, own_tasks) for name, task in params.other_tasks.items()}


def score_other_tasks(
    lm: "PrefixLM", others: dict[str, dict], params: Eval
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Metrics of further lm-eval tasks, by task or group, and of each the contexts that lost their beginning."""
    from lm_eval import evaluate as lm_evaluate

    results, cut = {}, {}
    for name, loaded in others.items():
        lm.cut = {}
        found = lm_evaluate(
            lm,
            loaded,
            limit=params.other_tasks[name].limit,
            apply_chat_template=params.chat_template,
            fewshot_as_multiturn=params.chat_template,
            log_samples=False,
        )
        for part, metrics in found["results"].items():
            results[part] = {key: value for key, value in metrics.items() if isinstance(value, float)}
        cut[name] = len(lm.cut)
        for text, lost in lm.cut.items():
            print(f"{name}: cut at its beginning by {lost} tokens: {text[-80:]!r}", file=sys.stderr)
    return results, cut
