"""What the report reads, as the stages wrote it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MODELS = ("base", "tuned")
NAMES = {"ceval": "C-Eval", "mmlu": "MMLU", "cmmlu": "CMMLU"}
SPLITS = {"ceval": "val", "mmlu": "test", "cmmlu": "test"}
REPLY_MEASURES = {  # of results.json: in words, and the format of a value
    "zh_reply_rate": ("in Chinese", ".0%"),
    "mixed_rate": ("in a mixture", ".0%"),
    "repetition": ("repetition", ".0%"),
    "mean_length": ("characters", ".0f"),
}
CONFUSION_MEASURES = {"lpr": ("LPR", ".0%"), "wpr": ("WPR", ".0%")}
OVERLAP_MEASURES = {"bleu_4": "BLEU-4", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L"}


def shown(value: float | None, form: str) -> str:
    """A measure as text by a format such as `.2f`; "-" for one that nothing was left to measure on."""
    return "-" if value is None else format(value, form).replace("%", "\u00a0%")


def change(base: float | None, tuned: float | None, form: str) -> str:
    """`base → tuned` in one cell."""
    return f"{shown(base, form)}\u00a0→\u00a0{shown(tuned, form)}"  # in one line


@dataclass(frozen=True)
class ReportInputs:
    """`paper` alone is quoted; all else was measured by the stages of one run."""

    paper: dict
    clean: dict
    sft: dict
    merge: dict
    results: Mapping[str, dict]  # of each model: results.json of eval
    questions: Mapping[str, dict]  # of each model: prediction and target by question
    prompts: Mapping[str, list[dict]]  # of each model: rows of prompts.parquet
    curve: Sequence[dict]  # rows of the loss curve
    inputs: Sequence[dict] = field(default_factory=list)  # what was fetched
    categories: Mapping[tuple[str, str], str] = field(default_factory=dict)  # of each (task, subject)
    router_changes: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by language, of each layer
    checkpoints: Sequence[dict] = field(default_factory=list)  # scores by step
    hashes: Mapping[str, str] = field(default_factory=dict)  # DVC's hash of each output
