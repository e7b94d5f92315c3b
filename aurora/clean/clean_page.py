"""A page that shows what clean did: counts, examples of every reason, histograms, and a sample of kept rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from aurora.clean.row_store import RowStore
from aurora.core.files import write_text
from aurora.core.page import render

TEMPLATE = Path(__file__).with_name("clean_page.html")
EXAMPLES = 3  # of each reason
SAMPLE = 12  # kept rows
SHOWN = 800  # characters of a conversation
LENGTHS = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)  # characters of a conversation
ROUNDS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
COLUMNS = ("read", "kept", "repaired_rows", "single_round", "multiple_rounds", "traditional")
WORDS = {
    "begins_with_assistant": "the conversation begins with an answer",
    "conflicting_keys": "two columns hold different texts for one part",
    "contaminated": "holds a benchmark question, so that its score would measure memory",
    "empty_answer": "the answer has no text",
    "empty_prompt": "the prompt has no text",
    "ends_on_user": "the conversation ends on a prompt",
    "exact_duplicate": "has the messages of an earlier row",
    "leaked_translation_prompt": "begins with the order to the translator of the data set",
    "lone_surrogate": "holds half of a character pair, which no UTF-8 file can hold",
    "marked_as_bad": "its source marks it with label: false",
    "missing_key": "lacks a column of its format",
    "mojibake": "was read in a wrong encoding, and no repair is certain",
    "near_duplicate": "differs from an earlier row in a few characters",
    "nested_too_deeply": "is nested too deeply to be read",
    "no_messages": "has no messages",
    "no_whole_round": "has no prompt with an answer",
    "not_an_object": "is no JSON object",
    "not_chinese": "has too few Chinese characters",
    "not_taken": "left out by take of its source",
    "not_to_train": "its source marks it as not to be trained",
    "other_model": "the answer presents itself as another vendor's model",
    "placeholder_answer": "a placeholder takes the place of the answer",
    "preference_pair": "has two answers, of which none is chosen by columns",
    "refusal": "the answer refuses, or asks for a text that the prompt forgot",
    "repeated_key": "an object names one key twice",
    "result_unanswered": "a prompt follows the result of a tool call, and no answer",
    "roles_not_alternating": "two prompts or two answers stand in a row",
    "short_answer": "the answer is shorter than clean.min_answer_characters",
    "stray_key": "lacks input, and has a text under a name that is not known",
    "template_markers": "the text holds markers of a chat template, and no split is certain",
    "too_long": "no whole round is within clean.max_characters",
    "traditional": "is written in traditional characters",
    "truncated_answer": "the answer breaks off in the middle of the text",
    "unknown_role": "names a role that no dialect has",
    "unreachable_prompt": "the prompt needs a picture, a recording or a page",
    "unstable": "each repair makes another necessary",
    "wrong_number_of_cells": "a line of a table has more or fewer cells than its heading",
    "wrong_type": "a column has another type than its format",
    # repairs
    "answer_masked": "an answer that its source marks is read and not trained",
    "blanks_trimmed": "blanks at the ends of a text were removed",
    "encoding_repaired": "text in a wrong encoding was decoded again",
    "html_removed": "tags and entities of web pages were removed",
    "invisible_removed": "characters that no reader sees were removed",
    "key_translated": "columns or roles were named in another language",
    "leading_assistant_trimmed": "an answer without a prompt at the beginning was removed",
    "no_input_marker": "an input that says that there is none was left out",
    "number_to_text": "a number became text",
    "reasoning_removed": "hidden reasoning beside the answer was left out",
    "system_prompt": "has a system prompt",
    "template_removed": "markers of a chat template were removed",
    "trailing_user_trimmed": "a prompt or a tool's result without an answer at the end was removed",
    "traditional_converted": "traditional characters were converted",
}


def write_page(path: Path, store: RowStore, kept: np.ndarray, metrics: dict) -> None:
    """Writes the page as one HTML file without scripts or outside links; `kept` are the kept rows by id."""
    total = metrics["total"]
    sources = metrics["sources"] | {"total": total}
    page = render(
        TEMPLATE,
        title=f"clean: kept {total['kept']:,} of {total['read']:,} rows",
        notes=metrics["notes"],
        columns=("source", *COLUMNS, "dropped"),
        sources=[
            (name, *(f"{sums[column]:,}" for column in COLUMNS), f"{sum(sums['dropped'].values()):,}")
            for name, sums in sources.items()
        ],
        repaired=by_count(total["repaired"]),
        dropped=by_count(total["dropped"]),
        words=WORDS | {name: _cut(name) for name in total["repaired"] if name.startswith("cut_at_")},
        examples=list(_examples(store, by_count(total["dropped"]))),
        topics=by_count(metrics["topics"]),
        lengths=histogram(store.facts["characters"][kept], LENGTHS),
        rounds=histogram(store.facts["rounds"][kept], ROUNDS),
        # The first by content id: random, and the same again.
        sample=[{"place": store.place(row), "text": _text(store, row)} for row in kept[:SAMPLE].tolist()],
    )
    write_text(path, page)


def by_count(counts: Mapping[str, int]) -> dict[str, int]:
    """The same counts, the largest first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def histogram(values: np.ndarray, bounds: tuple[int, ...]) -> dict[str, int]:
    """Counts of values up to each bound, and beyond the last."""
    counts = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1).tolist()
    names = [*(f"to {bound:,}" for bound in bounds), f"beyond {bounds[-1]:,}"]
    return dict(zip(names, counts, strict=True))


def _cut(name: str) -> str:
    reason = name.removeprefix("cut_at_")
    return f"cut in front of the first round at fault: {WORDS.get(reason, reason)}"


def _text(store: RowStore, row: int) -> str:
    found = store.conversation(row)
    text = "\n".join(f"user: {each.prompt}\nassistant: {each.answer}" for each in found.rounds)
    return (f"system: {found.system}\n{text}" if found.system else text)[:SHOWN]


def _examples(store: RowStore, reasons: Mapping[str, int]) -> Iterator[dict]:
    """Some dropped rows of each reason, the most frequent reason first, and for a duplicate the row that stays."""
    for reason, count in reasons.items():
        dropped = store.sorted(np.flatnonzero(store.facts["reason"] == store.reasons(reason)))
        rows = []
        for row in dropped[:: max(1, count // EXAMPLES)][:EXAMPLES].tolist():
            shown = {"place": store.place(row), "evidence": store.evidence(row)}
            stays = int(store.stays[row])
            if stays >= 0 and not store.facts["reason"][stays]:
                shown |= {"kept": _text(store, stays), "kept_place": store.place(stays)}
            rows.append(shown)
        yield {"name": reason, "count": count, "rows": rows}
