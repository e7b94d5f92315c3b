"""What became of every row, and the sums that must add up."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aurora.clean.parse_rows import Drop
from aurora.core.errors import DataError
from aurora.core.messages import Message

# Table 2 of arXiv 2312.14557: single and multiple rounds of the raw files.
PAPER = {"alpaca_data_zh_51k": (51461, 0), "alpaca_gpt4_data_zh": (48818, 0), "sharegpt_70k": (41066, 35333)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row."""

    source: str
    position: int  # 0-based row of the source file
    rounds: int  # rounds as read; 0 if the row could not be read
    messages: tuple[Message, ...]  # empty if dropped
    mended: tuple[str, ...]
    drop: Drop | None
    id: str = ""  # content id of a kept row
    traditional: bool = False
    topic: str = ""  # of a kept row


def account(outcomes: list[Outcome], expected: Mapping[str, int | None]) -> dict:
    """metrics.json: per source and in total read, kept, mended and dropped by kind, and rounds."""
    sources = {name: _sums([o for o in outcomes if o.source == name]) for name in expected}
    for name, sums in sources.items():
        sums["expected_rows"] = expected[name]
        if sums["kept"] + sum(sums["dropped"].values()) != sums["read"]:
            raise DataError(f"clean: source {name}: kept and dropped do not add up to read: {sums}")
    return {"sources": sources, "total": _sums(outcomes), "notes": list(_notes(sources))}


def _sums(outcomes: list[Outcome]) -> dict:
    kept = [outcome for outcome in outcomes if not outcome.drop]
    mended = Counter(name for outcome in kept for name in outcome.mended)
    dropped = Counter(outcome.drop.reason for outcome in outcomes if outcome.drop)
    return {
        "read": len(outcomes),
        "read_single_round": sum(outcome.rounds <= 1 for outcome in outcomes),
        "read_multiple_rounds": sum(outcome.rounds > 1 for outcome in outcomes),
        "kept": len(kept),
        "single_round": sum(len(outcome.messages) == 2 for outcome in kept),
        "multiple_rounds": sum(len(outcome.messages) > 2 for outcome in kept),
        "mended_rows": sum(bool(outcome.mended) for outcome in kept),
        "mended": dict(sorted(mended.items())),
        "dropped": dict(sorted(dropped.items())),
        "traditional": sum(outcome.traditional for outcome in kept),
    }


def _notes(sources: Mapping[str, dict]) -> Iterator[str]:
    for name, sums in sources.items():
        expected = sums["expected_rows"]
        if expected is None:
            continue
        if expected != sums["read"]:
            yield f"{name}: {expected:,} rows are expected, {sums['read']:,} were read"
        single, multiple = PAPER.get(name, (sums["read_single_round"], sums["read_multiple_rounds"]))
        if (single, multiple) != (sums["read_single_round"], sums["read_multiple_rounds"]):
            yield (
                f"{name}: the paper counts {single:,} single-round and {multiple:,} multi-round conversations, "
                f"the file has {sums['read_single_round']:,} and {sums['read_multiple_rounds']:,}"
            )
