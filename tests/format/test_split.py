"""The split through clean and format: new sources move nothing, near duplicates stay on one side."""

import random
from pathlib import Path

import pyarrow.parquet
import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from stand_ins.clean_case import CLEAN, cleaned, put, row

from aurora.format.format import format_rows
from aurora.format.params import Format
from aurora.format.split import is_held_out, split

MODEL_FILE = MistralTokenizer._data_path() / "tokenizer.model.v1"
RULES = Format(prompt="mistral", max_length=1024, long_conversation="continue", long_round="drop", held_out=0.3)
SIGNS = [chr(code) for code in range(0x4E00, 0x5200)]


def text(source: random.Random) -> str:
    return "".join(source.choices(SIGNS, k=200))


def changed(whole: str, start: int, source: random.Random) -> str:
    """The text with eleven signs replaced: 5-grams at Jaccard 0.86, so two changes apart are at 0.75."""
    return whole[:start] + "".join(source.choices(SIGNS, k=11)) + whole[start + 11 :]


def chains(count: int) -> tuple[list[str], list[str]]:
    """Old answers in pairs that are no near duplicates, and new ones that are of both members of a pair."""
    source = random.Random(4)
    middle = [text(source) for _ in range(count)]
    old = [changed(whole, start, source) for whole in middle for start in (40, 120)]
    return old, middle


def formatted(folder: Path, answers: dict[str, list[str]]) -> tuple[dict[str, str], dict[str, str], dict]:
    """Side by conversation id, answer by conversation id, and the metrics, of sources in their order."""
    folders = {
        name: put(folder / "raw", name, [row(f"请回答问题{name}", answer) for answer in texts])
        for name, texts in answers.items()
    }
    off = CLEAN.model_copy(update={"contamination": None, "truncated_answers": False})
    found = cleaned(folders, [], off, out=folder)
    metrics = format_rows(folder / "conversations.parquet", MODEL_FILE, folder / "out", RULES)
    sides = {}
    for side in ("train", "held_out"):
        table = pyarrow.parquet.read_table(folder / "out" / f"{side}.parquet")
        sides |= dict.fromkeys(table["id"].to_pylist(), side)
    texts = {conversation.id: conversation.rounds[0].answer for conversation, _ in found.kept}
    return sides, texts, metrics


def grams(text: str) -> set[str]:
    return {text[start : start + 5] for start in range(len(text) - 4)}


def across(sides: dict[str, str], texts: dict[str, str]) -> float:
    """The highest Jaccard similarity of character 5-grams between the two sides, all pairs compared."""
    held_out = [grams(texts[key]) for key, side in sides.items() if side == "held_out"]
    train = [grams(texts[key]) for key, side in sides.items() if side == "train"]
    return max(len(one & other) / len(one | other) for one in held_out for other in train)


def test_a_source_of_near_duplicates_moves_no_row_and_none_straddles(tmp_path: Path):
    old, new = chains(40)
    before, texts, metrics = formatted(tmp_path / "before", {"old": old})
    assert len(before) == len(texts) == 80
    assert metrics["rounds_dropped_near_held_out"] == 0
    assert 0.7 < across(before, texts) < 0.8  # pairs that clean keeps apart may part
    after, texts, metrics = formatted(tmp_path / "after", {"old": old, "new": new})
    assert len(texts) == 80  # each new row is a near duplicate of an old one
    for key, side in before.items():
        assert after.get(key, "left out") in (side, "left out")
        assert side == "train" or key in after
    # The new rows joined the members of a pair: where one is held out, the other is not trained any more.
    left_out = before.keys() - after.keys()
    assert metrics["rounds_dropped_near_held_out"] == metrics["conversations_dropped"] == len(left_out) > 5
    assert across(after, texts) < 0.2


def test_a_new_source_in_front_moves_no_row_either(tmp_path: Path):
    old, new = chains(40)
    before, texts, _ = formatted(tmp_path / "before", {"old": old})
    after, texts, _ = formatted(tmp_path / "after", {"new": new, "old": old})
    common = before.keys() & after.keys()
    assert all(before[key] == after[key] for key in common)
    assert across(after, texts) < 0.2


def test_only_the_own_id_holds_a_conversation_out():
    ids = [f"{number:04}" for number in range(400)]
    own = split(ids, ids, 0.3)
    joined = split(ids, [ids[number - number % 4] for number in range(400)], 0.3)
    assert own.held_out.tolist() == joined.held_out.tolist() == [is_held_out(key, 0.3) for key in ids]
    assert not own.near_held_out.any()
    for start in range(0, 400, 4):
        held_out, near = joined.held_out[start : start + 4], joined.near_held_out[start : start + 4]
        assert (near == (~held_out & held_out.any())).all()


def test_a_larger_share_only_adds_held_out_rows():
    keys = [str(number) for number in range(2000)]
    small, large = ({key for key in keys if is_held_out(key, share)} for share in (0.1, 0.3))
    assert small < large
    assert len(large) == pytest.approx(600, abs=70)
