"""The small files that git tracks, gathered from the outputs of the stages before."""

import csv
import io
from pathlib import Path

from aurora.errors import DataError
from aurora.model_card import with_scores
from aurora.store import read_json, read_parquet, write_json, write_text

MODELS = ("base", "tuned")
BENCHMARKS = ("ceval", "mmlu", "cmmlu")


def evaluation(results: dict[str, dict]) -> dict:
    """metrics/eval.json: for each model what eval measured, without the scores by subject."""
    return {
        model: {name: value for name, value in results[model].items() if name != "subjects"}
        for model in MODELS
    }


def accuracy_table(results: dict[str, dict]) -> str:
    """CSV benchmark,model,acc,stderr,n; `benchmark` names the model too, for one bar each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("benchmark", "model", "acc", "stderr", "n"))
    for benchmark in BENCHMARKS:
        for model in MODELS:
            if benchmark in results[model]:
                score = results[model][benchmark]
                writer.writerow(
                    (
                        f"{benchmark} {model}",
                        model,
                        f"{score['acc']:.4f}",
                        f"{score['stderr']:.4f}",
                        score["n"],
                    )
                )
    return text.getvalue()


def subject_table(results: dict[str, dict]) -> str:
    """CSV subject,model,acc,n over all subjects of all benchmarks; `subject` is prefixed by its benchmark."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("subject", "model", "acc", "n"))
    for model in MODELS:
        for subject, score in sorted(results[model].get("subjects", {}).items()):
            writer.writerow((subject, model, f"{score['acc']:.4f}", score["n"]))
    return text.getvalue()


def topic_table(counts: dict[str, int]) -> str:
    """CSV topic,rows of the kept conversations, the largest topic first: Figure 1 of the paper."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "topic,rows\n" + "".join(f'"{name}",{count}\n' for name, count in rows)


def replies_page(folders: dict[str, Path]) -> str:
    """Markdown: each held-out prompt with the greedy replies of both models.

    Raises DataError if the models were not given the same prompts.
    """
    rows = {
        model: read_parquet(folders[model] / "replies.parquet", f"eval@{model}").to_pylist()
        for model in MODELS
    }
    if [row["id"] for row in rows["base"]] != [row["id"] for row in rows["tuned"]]:
        raise DataError(
            f"{folders['base']} and {folders['tuned']} answer different prompts; run both again: dvc repro -f eval"
        )
    lines = [
        "# Replies to held-out Chinese prompts",
        "",
        "Greedy, in full, base and tuned; the language in brackets is what `zh_reply_rate` counts.",
    ]
    for number, (base, tuned) in enumerate(zip(rows["base"], rows["tuned"], strict=True), start=1):
        lines += ["", f"## {number}. {_one_line(base['prompt'])}", ""]
        for model, row in (("base", base), ("tuned", tuned)):
            lines += [f"**{model}** ({row['language']}): {_one_line(row['reply']) or '(empty)'}", ""]
        lines.pop()
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    # Inside a paragraph no reply can open a heading, a table or markup of its own.
    flat = " ".join(text.split())
    for mark in "\\`*_[]<>#|":
        flat = flat.replace(mark, "\\" + mark)
    return flat


def write_report(
    clean: Path,
    format_: Path,
    sft: Path,
    merge: Path,
    folders: dict[str, Path],
    cards: dict[str, Path],
    out: Path,
) -> dict:
    """Writes every tracked file into `out` and returns the content of eval.json.

    `cards` are the model cards by the name of the file that each becomes, with the scores.
    """
    results = {model: read_json(folders[model] / "results.json", f"eval@{model}") for model in MODELS}
    page = replies_page(folders)
    curve = sft / "curve.csv"
    if not curve.is_file():
        raise DataError(f"{curve}: not found; it is written by: dvc repro sft")
    for path in cards.values():
        if not path.is_file():
            raise DataError(f"{path}: not found; it is written by: dvc repro merge")
    pages = {name: path.read_text(encoding="utf-8") for name, path in cards.items()}
    metrics = {
        "clean": read_json(clean, "clean"),
        "format": read_json(format_, "format"),
        "sft": read_json(sft / "metrics.json", "sft"),
        "merge": read_json(merge, "merge"),
        "eval": evaluation(results),
    }
    for name, content in metrics.items():
        write_json(out / f"{name}.json", content)
    write_text(out / "loss.csv", curve.read_text(encoding="utf-8"))
    write_text(out / "accuracy.csv", accuracy_table(results))
    write_text(out / "subjects.csv", subject_table(results))
    write_text(out / "topics.csv", topic_table(metrics["clean"]["topics"]))
    write_text(out / "replies.md", page)
    for name, text in pages.items():
        write_text(out / name, with_scores(text, metrics["eval"]))
    return metrics["eval"]
