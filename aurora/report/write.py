"""The small files that git tracks: metrics, tables of plots, pictures, replies, model cards and REPORT.md."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy

from aurora.core.declared import FETCH_BASE
from aurora.core.errors import DataError
from aurora.core.files import dvc_hash, read_json, replacing, write_json, write_text
from aurora.core.manifests import read_fetched, read_origins
from aurora.core.parquet import read_parquet
from aurora.core.yaml_files import read_yaml
from aurora.report.adapter_card import adapter_card
from aurora.report.blocks import Picture, escaped, html, markdown
from aurora.report.comparison import read_categories, read_questions
from aurora.report.inputs import MODELS, NAMES, ReportInputs
from aurora.report.model_card import merged_card
from aurora.report.page import report_blocks

PAPER = Path(__file__).with_name("paper.yaml")
APART = ("categories", "subjects", "protocol")  # of results.json, which metrics/eval.json leaves out
COMPARED = ("zh_reply_rate", "exact_match", "loss")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the earlier stages left what the report reads."""

    clean: Path  # metrics.json
    format: Path  # metrics.json
    sft: Path  # folder
    merge: Path  # metrics.json
    models: dict[str, Path]  # folders of eval
    adapter: Path  # PEFT folder
    sources: Path  # sources.json of clean
    base_manifest: Path  # manifest of the fetched base
    lengths: Path  # CSV of token lengths by source
    checkpoints: Path  # scores.json of kept adapters


def evaluation(results: dict[str, dict]) -> dict:
    """metrics/eval.json: what eval measured on each model, without scores by category, subject and kind of prompt."""
    found = {model: {name: value for name, value in results[model].items() if name not in APART} for model in MODELS}
    for scores in found.values():
        scores["prompts"] = {name: value for name, value in scores["prompts"].items() if name != "kinds"}
        if scores.get("router"):
            scores["router"] = {
                language: {name: value for name, value in part.items() if name != "load"}
                for language, part in scores["router"].items()
            }
    return found


def compared(results: dict, trained_tokens: int) -> dict:
    """metrics/base.json and metrics/tuned.json: the few numbers of a model that `dvc metrics` shows.

    Accuracies under lm-eval's protocol, under the paper's where it was asked for, and of further tasks by lm-eval's name.
    """
    paper, other = results.get("paper") or {}, results.get("other") or {}
    further = {task: metrics["acc,none"] for task, metrics in other.items() if "acc,none" in metrics}
    return {
        **{name: results[name]["acc"] for name in NAMES if name in results},
        **{f"{name}_paper": score["acc"] for name, score in paper.items()},
        **further,
        **{name: results[name] for name in COMPARED},
        "trained_tokens": trained_tokens,
    }


def loss_table(curve: list[dict]) -> str:
    """CSV step,rows,loss: training and held-out loss, each at the steps where it was measured."""
    columns = (("training", "loss"), ("held out", "held_out_loss"))
    return _csv(
        ("step", "rows", "loss"),
        [(row["step"], name, row[key]) for name, key in columns for row in curve if row.get(key)],
    )


def training_table(curve: list[dict]) -> str:
    """CSV step,learning_rate,grad_norm at the logged steps of training."""
    columns = ("step", "learning_rate", "grad_norm")
    return _csv(columns, [tuple(row[name] for name in columns) for row in curve if row.get("grad_norm")])


def accuracy_table(results: dict[str, dict]) -> str:
    """CSV benchmark,model,acc,stderr,n."""
    return _csv(
        ("benchmark", "model", "acc", "stderr", "n"),
        [
            (NAMES[name], model, *_score(results[model][name]))
            for name in NAMES
            for model in MODELS
            if name in results[model]
        ],
    )


def category_table(results: dict[str, dict]) -> str:
    """CSV category,model,acc,stderr,n over the categories of MMLU and CMMLU."""
    return _csv(
        ("category", "model", "acc", "stderr", "n"),
        [
            (category, model, *_score(score))
            for model in MODELS
            for category, score in sorted(results[model]["categories"].items())
        ],
    )


def subject_table(results: dict[str, dict]) -> str:
    """CSV subject,model,acc,stderr,n over all subjects of all benchmarks; `subject` is prefixed by its benchmark."""
    return _csv(
        ("subject", "model", "acc", "stderr", "n"),
        [
            (subject, model, f"{score['acc']:.4f}", f"{binomial_error(score):.4f}", score["n"])
            for model in MODELS
            for subject, score in sorted(results[model]["subjects"].items())
        ],
    )


def binomial_error(score: dict) -> float:
    """Standard error of an accuracy, as lm-eval has it: the sample's, with n - 1."""
    return (score["acc"] * (1 - score["acc"]) / max(1, score["n"] - 1)) ** 0.5


def _score(score: dict) -> tuple[str, str, int]:
    return f"{score['acc']:.4f}", f"{score['stderr']:.4f}", score["n"]


def _csv(header: tuple, rows: list[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def topic_table(counts: dict[str, int]) -> str:
    """CSV topic,rows of the kept conversations, the largest topic first: Figure 1 of the paper."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "topic,rows\n" + "".join(f'"{name}",{count}\n' for name, count in rows)


def replies_page(prompts: dict[str, list[dict]], held_out: dict[str, list[dict]]) -> str:
    """Markdown: the greedy replies of both models side by side, to the fixed prompts by kind and to held-out ones."""
    lines = [
        "# Replies to Chinese prompts",
        "",
        "Greedy, in full, base and tuned; the language in brackets is what `zh_reply_rate` counts.",
    ]
    kind = None
    for base, tuned in zip(*(prompts[model] for model in MODELS), strict=True):
        if base["kind"] != kind:
            kind = base["kind"]
            lines += ["", f"## {escaped(kind)}, fixed prompts"]
        again = f", round {base['round']}" if base["round"] > 1 else ""
        lines += _pair(f"{base['number']}{again}", base, tuned)
    lines += ["", "## Held-out prompts"]
    for number, (base, tuned) in enumerate(zip(*(held_out[model] for model in MODELS), strict=True), start=1):
        lines += _pair(str(number), base, tuned)
    return "\n".join(lines) + "\n"


def _pair(number: str, base: dict, tuned: dict) -> list[str]:
    lines = ["", f"### {number}. {escaped(base['prompt'])}"]
    for model, row in (("base", base), ("tuned", tuned)):
        lines += ["", f"**{model}** ({row['language']}): {escaped(row['reply']) or '(empty)'}"]
    return lines


def read_paper(path: Path = PAPER) -> dict:
    """The paper's own numbers."""
    return read_yaml(path)


def read_rows(folders: dict[str, Path], name: str, keys: tuple[str, ...]) -> dict[str, list[dict]]:
    """Rows of a table of eval for both models. Raises DataError if they were not given the same prompts."""
    rows = {model: read_parquet(folders[model] / name, f"eval@{model}").to_pylist() for model in MODELS}
    if len({tuple(tuple(row[key] for key in keys) for row in rows[model]) for model in MODELS}) > 1:
        raise DataError(
            f"{folders['base']} and {folders['tuned']} answer different prompts ({name}); "
            "run both again: dvc repro -f eval"
        )
    return rows


def read_results(folders: dict[str, Path]) -> dict[str, dict]:
    """results.json of both models. Raises DataError if one lacks a part that the report needs."""
    results = {}
    for model in MODELS:
        path = folders[model] / "results.json"
        results[model] = read_json(path, f"eval@{model}")
        for part in (
            "loss",
            "replies",
            "no_language",
            "lpr",
            "bleu_4",
            "exact_match",
            "categories",
            "subjects",
            "prompts",
            "memory",
            "protocol",
        ):
            if part not in results[model]:
                raise DataError(f"{path}: no '{part}'; write it again by: dvc repro -f eval@{model}")
    return results


def read_router_changes(folders: dict[str, Path], results: dict[str, dict]) -> dict[str, list[float]]:
    """By language, the share of tokens of each layer whose first expert differs; empty where none was measured."""
    if not all(results[model].get("router") for model in MODELS):
        return {}
    rows = read_rows(folders, "router.parquet", ("language",))
    found: dict[str, list[float]] = {}
    for language in dict.fromkeys(row["language"] for row in rows["base"]):
        base, tuned = (
            numpy.array([row["top_expert"] for row in rows[model] if row["language"] == language]) for model in MODELS
        )
        found[language] = (base != tuned).mean(axis=0).tolist()
    return found


def read_inputs(outputs: Outputs) -> list[dict]:
    """Path, URI, licence, bytes and DVC hash of each fetched source; a model, which may have 90 GB, by its manifest."""
    manifest = read_fetched(outputs.base_manifest, FETCH_BASE)
    model = {
        "path": outputs.base_manifest.as_posix(),
        "uri": manifest["uri"],
        "licence": manifest["licence"],
        "bytes": sum(file["bytes"] for file in manifest["files"]),
        "dvc_hash": dvc_hash(outputs.base_manifest),
    }
    return [*read_origins(outputs.sources), model]


def read_hashes(outputs: Outputs) -> dict[str, str]:
    """The DVC hash of each output that the report reads, by its path."""
    paths = [
        outputs.sft,
        *outputs.models.values(),
        outputs.clean,
        outputs.format,
        outputs.lengths,
        outputs.merge,
        outputs.adapter,
        outputs.checkpoints,
    ]
    return {path.as_posix(): dvc_hash(path) for path in paths}


def write_report(outputs: Outputs, out: Path, report: Path, page: Path) -> dict:
    """Writes every tracked file into `out`, REPORT.md, the HTML page, and returns the content of eval.json."""
    results = read_results(outputs.models)
    held_out = read_rows(outputs.models, "replies.parquet", ("id",))
    prompts = read_rows(outputs.models, "prompts.parquet", ("kind", "number", "round", "prompt"))
    curve = outputs.sft / "curve.csv"
    if not curve.is_file():
        raise DataError(f"{curve}: not found; it is written by: dvc repro sft")
    curve_text = curve.read_text(encoding="utf-8")
    if not outputs.lengths.is_file():
        raise DataError(f"{outputs.lengths}: not found; it is written by: dvc repro format")
    metrics = {
        "clean": read_json(outputs.clean, "clean"),
        "format": read_json(outputs.format, "format"),
        "sft": read_json(outputs.sft / "metrics.json", "sft"),
        "merge": read_json(outputs.merge, "merge"),
        "eval": evaluation(results),
    }
    provenance = (outputs.base_manifest.parent, outputs.adapter, outputs.sources, metrics["eval"])
    cards = {"adapter_card.md": adapter_card(*provenance), "model_card.md": merged_card(*provenance)}
    blocks = report_blocks(
        ReportInputs(
            paper=read_paper(),
            clean=metrics["clean"],
            sft=metrics["sft"],
            merge=metrics["merge"],
            results=results,
            questions={model: read_questions(folder) for model, folder in outputs.models.items()},
            prompts=prompts,
            categories=read_categories(outputs.models["tuned"]),
            router_changes=read_router_changes(outputs.models, results),
            checkpoints=read_json(outputs.checkpoints, "checkpoints")["scores"],
            curve=list(csv.DictReader(io.StringIO(curve_text))),
            inputs=read_inputs(outputs),
            hashes=read_hashes(outputs),
        )
    )
    trained = {"base": 0, "tuned": metrics["format"]["trained_tokens"]}
    metrics |= {model: compared(results[model], trained[model]) for model in MODELS}
    for name, content in metrics.items():
        write_json(out / f"{name}.json", content)
    curve = list(csv.DictReader(io.StringIO(curve_text)))
    write_text(out / "loss.csv", loss_table(curve))
    write_text(out / "training.csv", training_table(curve))
    write_text(out / "lengths.csv", outputs.lengths.read_text(encoding="utf-8"))
    write_text(out / "accuracy.csv", accuracy_table(results))
    write_text(out / "categories.csv", category_table(results))
    write_text(out / "subjects.csv", subject_table(results))
    write_text(out / "topics.csv", topic_table(metrics["clean"]["topics"]))
    write_text(out / "replies.md", replies_page(prompts, held_out))
    for name, text in cards.items():
        write_text(out / name, text)
    with replacing(out / "pictures") as folder:
        folder.mkdir()
        for block in blocks:
            if isinstance(block, Picture):
                write_text(folder / block.file, block.svg)
    write_text(report, markdown(blocks, f"{out.name}/pictures"))
    write_text(page, html(blocks, "Report", "../" * (len(page.parts) - 1)))
    return metrics["eval"]
