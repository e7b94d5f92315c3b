"""Fetched sets of prompts: the Language Confusion Benchmark, CMB, and AlignBench to be judged elsewhere."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import DataError
from aurora.core.files import write_text
from aurora.core.language import language
from aurora.core.manifests import read_manifest
from aurora.core.messages import PromptName
from aurora.core.parquet import write_parquet
from aurora.eval.chat_encoder import ChatEncoder
from aurora.eval.language_confusion import verdict
from aurora.eval.medical import REPLY_TOKENS, exam_scores, read_answers, read_exam
from aurora.eval.replies import Prompt, greedy_replies, reply_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from aurora.eval.params import Replies
    from aurora.eval.resume_cache import ResumeCache

TASKS = ("monolingual", "crosslingual")
CONFUSION_TOKENS = 100  # of a reply to a prompt of the Language Confusion Benchmark, as its authors generate


@dataclass(frozen=True, slots=True)
class PromptSource:
    """The prompts of one fetched source."""

    name: str
    format: str  # language_confusion, alignbench or cmb
    rows: list[dict]  # with a prompt; of AlignBench the line itself, which has a question
    answers: dict | None = None  # of CMB, by id

    def texts(self) -> list[str]:
        """What is put to the model."""
        return [row["question" if self.format == "alignbench" else "prompt"] for row in self.rows]


def read_prompt_sources(folder: Path) -> list[PromptSource]:
    """The sources of kind prompts below `folder`, by name. Raises DataError for one that breaks its format."""
    readers = {
        "language_confusion": lambda path, _: _read_confusion(path),
        "alignbench": lambda _, files: _read_alignbench(files),
        "cmb": lambda _, files: read_exam(files),
    }
    found, answers = [], None
    for path in sorted(path for path in Path(folder).glob("[!.]*") if path.is_dir()):
        manifest = read_manifest(path)
        format_, files = manifest["format"], [path / file["path"] for file in manifest["files"]]
        if format_ == "cmb_answers":
            answers = read_answers(files)
        elif format_ in readers:
            found.append(PromptSource(path.name, format_, readers[format_](path, files)))
        else:
            known = ", ".join((*readers, "cmb_answers"))
            raise DataError(f"{path}: format {format_} is not one of {known}; correct the source")
    if answers is None and any(source.format == "cmb" for source in found):
        raise DataError(f"{folder}: a source of format cmb, but none of format cmb_answers; add it to sources")
    return [replace(source, answers=answers) if source.format == "cmb" else source for source in found]


def _read_confusion(folder: Path) -> list[dict]:
    rows = []
    for task in TASKS:
        for path in sorted(folder.rglob(f"{task}/*/zh.csv")):
            try:
                with open(path, encoding="utf-8-sig", newline="") as file:
                    lines = list(csv.DictReader(file, strict=True))
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{path}: not CSV in UTF-8 ({error}); fetch the source again") from None
            for number, line in enumerate(lines):
                if not (line.get("prompt") or "").strip() or not line.get("source"):
                    raise DataError(f"{path} row {number}: no prompt or no source; fetch the source again")
                rows.append({"task": task, "set": line["source"], "prompt": line["prompt"]})
    if not rows:
        raise DataError(f"{folder}: no monolingual/SET/zh.csv or crosslingual/SET/zh.csv; correct the source")
    return rows


def _read_alignbench(paths: Sequence[Path]) -> list[dict]:
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                question = row["question"].strip() and row["question_id"]
            except (ValueError, TypeError, KeyError, AttributeError):
                raise DataError(f"{path} line {number}: no JSON object with question_id and question") from None
            if question == "":
                raise DataError(f"{path} line {number}: an empty question; fetch the source again")
            rows.append(row)
    if not rows:
        raise DataError(f"{paths[0]}: no line; correct the source")
    return rows


def encode_sources(
    tokenizer: "PreTrainedTokenizerFast",
    sources: list[PromptSource],
    form: PromptName,
    params: "Replies",
    max_length: int,
) -> dict[str, list[Prompt]]:
    """Prompts with their tokens, by source. Raises DataError for one that may outgrow the context with its reply."""
    encode = ChatEncoder(tokenizer, form).question
    found = {}
    for source in sources:
        prompts = [Prompt(f"{i:06}", text, encode(text, True)) for i, text in enumerate(source.texts())]
        longest = max(prompts, key=lambda prompt: len(prompt.tokens))
        if len(longest.tokens) + params.max_new_tokens > max_length:
            raise DataError(
                f"{source.name}, prompt {int(longest.id) + 1}: {len(longest.tokens):,} tokens, and a reply of"
                f" {params.max_new_tokens:,}, but the context has {max_length:,}; raise eval.max_length, or remove the source"
            )
        found[source.name] = prompts
    return found


def answer_sources(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    sources: list[PromptSource],
    encoded: dict[str, list[Prompt]],
    params: "Replies",
    out: Path,
    model_id: str,
    memory: "ResumeCache | None" = None,
) -> dict:
    """Greedy replies, written to `out`, and their metrics: `language_confusion` by source, task and set, `medical` by source.

    SOURCE.parquet has task, set, prompt, reply, language and verdict; SOURCE.jsonl of an AlignBench has its lines with
    answer, answer_id and model_id, as its judge reads them.
    """
    limits = {"language_confusion": CONFUSION_TOKENS, "cmb": REPLY_TOKENS}
    results: dict[str, dict] = {"language_confusion": {}, "medical": {}}
    for source in sources:
        most = min(limits.get(source.format, params.max_new_tokens), params.max_new_tokens)
        prompts = encoded[source.name]
        replies = greedy_replies(model, tokenizer, prompts, most, params.batch_size, memory)
        if source.format == "language_confusion":
            metrics = _write_confusion(source, replies, out / f"{source.name}.parquet")
            results["language_confusion"][source.name] = metrics
        elif source.format == "cmb":
            results["medical"][source.name] = exam_scores(source.rows, replies, source.answers or {})
        else:
            _write_alignbench(source, replies, out / f"{source.name}.jsonl", model_id)
    return results


def _write_confusion(source: PromptSource, replies: list[str], path: Path) -> dict:
    import pyarrow

    rows = [
        {**row, "reply": reply, "language": language(reply), "verdict": verdict(reply)}
        for row, reply in zip(source.rows, replies, strict=True)
    ]
    write_parquet(path, pyarrow.Table.from_pylist(rows))
    parts: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        parts.setdefault((row["task"], row["set"]), []).append(row["reply"])
    metrics: dict[str, dict] = {}
    for (task, name), members in parts.items():
        metrics.setdefault(task, {})[name] = {"n": len(members)} | reply_metrics(members)
    return metrics


def _write_alignbench(source: PromptSource, replies: list[str], path: Path, model_id: str) -> None:
    lines = [
        json.dumps(
            {**row, "model_id": model_id, "answer_id": f"{row['question_id']}_{model_id}", "answer": reply},
            ensure_ascii=False,
        )
        for row, reply in zip(source.rows, replies, strict=True)
    ]
    write_text(path, "\n".join(lines) + "\n")
