"""Everything that the report tells, as the stages wrote it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MODELS = ("base", "tuned")
NAMES = {"ceval": "C-Eval", "mmlu": "MMLU", "cmmlu": "CMMLU"}
SPLITS = {"ceval": "val", "mmlu": "test", "cmmlu": "test"}
REPLY_MEASURES = ("zh_reply_rate", "mixed_rate", "repetition", "mean_length")


def shown(value: float | None, form: str) -> str:
    """A measure as text by a format such as `.2f`; "-" for one that nothing was left to measure on."""
    return "-" if value is None else format(value, form)


@dataclass(frozen=True)
class Gathered:
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
    hashes: Mapping[str, str] = field(default_factory=dict)  # DVC's hash of each output
