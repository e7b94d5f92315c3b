"""The outcome of every row, and sums that must add up."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aurora.clean.parse_rows import Drop
from aurora.core.errors import DataError
from aurora.core.messages import Conversation

if TYPE_CHECKING:
    from aurora.clean.row_store import RowStore

# Table 2 of arXiv 2312.14557: single and multiple rounds of the raw files.
PAPER = {"alpaca_data_zh_51k": (51461, 0), "alpaca_gpt4_data_zh": (48818, 0), "sharegpt_70k": (41066, 35333)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one row."""

    source: str
    position: int  # 0-based row of the source file
    rounds: int  # rounds as read; 0 if the row could not be read
    kept: Conversation | None  # None if dropped
    repaired: tuple[str, ...]
    drop: Drop | None
    id: str = ""  # content id of a kept row
    traditional: bool = False
    topic: str = ""  # of a kept row


def account(
    store: "RowStore",
    expected: Mapping[str, int | None],
    ignored: Mapping[str, Counter[str]],
    repeats: Mapping[str, int],
    advised: Mapping[str, str],
) -> dict:
    """metrics.json: per source and in total read, kept, repaired and dropped by kind, and rounds.

    `ignored` are the columns of each source that were not read, with the rows that have them; `repeats` how many
    times each row of a source is trained; `advised` what would fit a source of which no row could be read.
    """
    sources = {name: _sums(store, store.facts["source"] == store.sources(name)) for name in expected}
    for name, sums in sources.items():
        sums["expected_rows"] = expected[name]
        if ignored.get(name):
            sums["ignored_columns"] = dict(sorted(ignored[name].items()))
        if repeats.get(name, 1) > 1:
            sums["repeat"] = repeats[name]
        if sums["kept"] + sum(sums["dropped"].values()) != sums["read"]:
            raise DataError(f"clean: source {name}: kept and dropped do not add up to read: {sums}")
    return {
        "sources": sources,
        "total": _sums(store, np.ones(len(store.facts), dtype=bool)),
        "notes": [*_notes(sources), *_emptied(store, sources, advised)],
    }


def _sums(store: "RowStore", chosen: np.ndarray) -> dict:
    facts = store.facts[chosen]
    kept = facts[facts["reason"] == 0]
    repaired: Counter[str] = Counter()
    for names, count in store.repairs.counts(kept["repaired"]).items():
        repaired.update(dict.fromkeys(names, count))
    dropped = store.reasons.counts(facts["reason"])
    dropped.pop("", None)
    return {
        "read": len(facts),
        "read_single_round": int((facts["read_rounds"] <= 1).sum()),
        "read_multiple_rounds": int((facts["read_rounds"] > 1).sum()),
        "kept": len(kept),
        "single_round": int((kept["rounds"] == 1).sum()),
        "multiple_rounds": int((kept["rounds"] > 1).sum()),
        "repaired_rows": int((kept["repaired"] > 0).sum()),
        "repaired": dict(sorted(repaired.items())),
        "dropped": dict(sorted(dropped.items())),
        "traditional": int(kept["traditional"].sum()),
    }


def _notes(sources: Mapping[str, dict]) -> Iterator[str]:
    for name, sums in sources.items():
        if left := sums["dropped"].get("not_taken"):
            yield f"{name}: {sums['kept']:,} of {sums['kept'] + left:,} rows are taken"
        if "repeat" in sums:
            yield f"{name}: each of {sums['kept']:,} rows is trained {sums['repeat']} times an epoch"
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


def _emptied(store: "RowStore", sources: Mapping[str, dict], advised: Mapping[str, str]) -> Iterator[str]:
    """Sources of which nothing is kept, with the reasons, the first evidence and what would fit."""
    for name, sums in sources.items():
        if sums["kept"] or not sums["read"]:
            continue
        reasons = sorted(sums["dropped"].items(), key=lambda item: (-item[1], item[0]))
        facts, reason = store.facts, reasons[0][0]
        own = (facts["source"] == store.sources(name)) & (facts["reason"] == store.reasons(reason))
        evidence = store.evidence(int(np.flatnonzero(own)[0]))
        told = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:4])
        yield (
            f"{name}: no row is left of {sums['read']:,}: {told}; the first {reason}: {evidence[:160]}"
            + (f"; {advised[name]}" if advised.get(name) else "")
        )
