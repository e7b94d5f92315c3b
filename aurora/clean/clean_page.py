"""A page that shows what clean did: counts, examples of every reason, histograms, and a sample of kept rows."""

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from aurora.clean.clean import Cleaned
from aurora.core.files import write_text

EXAMPLES = 3  # of each reason
SAMPLE = 12  # kept rows
LENGTHS = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)  # characters of a conversation
ROUNDS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
STYLE = """body{font:15px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border-bottom:1px solid #ddd;padding:.2rem .7rem;text-align:left;
vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{background:#4a7ab5;height:.8rem}
pre{white-space:pre-wrap;background:#f6f6f4;padding:.6rem;margin:.2rem 0 1rem;font:inherit}h2{margin-top:2.2rem}"""


def write_page(path: Path, cleaned: Cleaned) -> None:
    """Writes the page as one HTML file without scripts or outside links."""
    total = cleaned.metrics["total"]
    kept = [conversation for conversation, _cluster in cleaned.kept]
    lengths = [sum(len(text) for each in row.rounds for text in each[:2]) for row in kept]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>clean</title><style>{STYLE}</style>",
        f"<h1>clean: kept {total['kept']:,} of {total['read']:,}</h1>",
        *(f"<p>{escape(note)}</p>" for note in cleaned.metrics["notes"]),
        "<h2>Sources</h2>",
        _sources(cleaned.metrics["sources"] | {"total": total}),
        "<h2>Repaired</h2>",
        _bars(total["repaired"]),
        "<h2>Dropped</h2>",
        _bars(total["dropped"]),
        *_examples(cleaned),
        "<h2>Topics</h2>",
        _bars(dict(sorted(cleaned.metrics["topics"].items(), key=lambda item: (-item[1], item[0])))),
        "<h2>Characters of a conversation</h2>",
        _bars(histogram(lengths, LENGTHS)),
        "<h2>Rounds of a conversation</h2>",
        _bars(histogram([len(row.rounds) for row in kept], ROUNDS)),
        "<h2>A sample of what was kept</h2>",
    ]
    # The first by content id: random, and the same again.
    for row in kept[:SAMPLE]:
        text = "\n".join(f"user: {each.prompt}\nassistant: {each.answer}" for each in row.rounds)
        text = f"system: {row.system}\n{text}" if row.system else text
        parts.append(f"<p>{escape(row.source)} {row.position}</p><pre>{escape(text[:800])}</pre>")
    write_text(path, "\n".join(parts) + "\n")


def histogram(values: Iterable[int], bounds: tuple[int, ...]) -> dict[str, int]:
    """Counts of values up to each bound, and beyond the last."""
    counts = Counter(next((bound for bound in bounds if value <= bound), None) for value in values)
    names = {bound: f"to {bound:,}" for bound in bounds} | {None: f"beyond {bounds[-1]:,}"}
    return {name: counts[bound] for bound, name in names.items()}


def _sources(sources: Mapping[str, dict]) -> str:
    columns = ("read", "kept", "repaired_rows", "single_round", "multiple_rounds", "traditional")
    head = "".join(f"<th>{column.replace('_', ' ')}" for column in ("source", *columns, "dropped"))
    rows = "".join(
        f"<tr><td>{escape(name)}"
        + "".join(f"<td class=n>{sums[column]:,}" for column in columns)
        + f"<td class=n>{sum(sums['dropped'].values()):,}"
        for name, sums in sources.items()
    )
    return f"<table><tr>{head}{rows}</table>"


def _bars(counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=0) or 1
    return (
        "<table>"
        + "".join(
            f"<tr><td>{escape(name)}<td class=n>{count:,}"
            f"<td style='width:22rem'><div class=bar style='width:{100 * count / most:.1f}%'></div>"
            for name, count in counts.items()
        )
        + "</table>"
    )


def _examples(cleaned: Cleaned) -> Iterable[str]:
    reasons: dict[str, list] = {}
    for outcome in sorted(cleaned.dropped, key=lambda outcome: (outcome.source, outcome.position)):
        if outcome.drop:
            reasons.setdefault(outcome.drop.reason, []).append(outcome)
    for reason, outcomes in sorted(reasons.items()):
        yield f"<h3>{escape(reason)}: {len(outcomes):,}</h3>"
        step = max(1, len(outcomes) // EXAMPLES)
        for outcome in outcomes[::step][:EXAMPLES]:
            yield f"<p>{escape(outcome.source)} {outcome.position}</p><pre>{escape(outcome.drop.evidence)}</pre>"
