"""Near duplicates against brute force in plain Python sets, and the promises of what stays."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from aurora.clean import near_duplicates
from aurora.clean.shingles import characters, joined, ngrams, windows


def find(texts: list[str], threshold: float) -> SimpleNamespace:
    """The near duplicates, as a dict: row that goes -> (row that stays, Jaccard)."""
    keys = near_duplicates.band_keys(texts)
    found = near_duplicates.find(keys.T, np.array(texts, dtype=object), threshold)
    rows = np.flatnonzero(found.kept_for >= 0).tolist()
    kept_for = {row: (int(found.kept_for[row]), float(found.similarity[row])) for row in rows}
    return SimpleNamespace(
        kept_for=kept_for, cluster=found.cluster.tolist(), candidates=found.candidates, pairs=found.pairs
    )


def brute(left: str, right: str) -> float:
    """Jaccard of character 5-grams, by Python's own strings."""
    first, second = (
        {text[at : at + 5] for at in range(max(1, len(text) - 4))}
        for text in ("".join(filter(str.isalnum, left.lower())), "".join(filter(str.isalnum, right.lower())))
    )
    return len(first & second) / len(first | second)


def sentence(chance: random.Random, length: int) -> str:
    return "".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(length))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """400 random texts; behind 200 of them a copy with a few characters exchanged."""
    chance = random.Random(5)
    result = []
    for number in range(400):
        text = sentence(chance, chance.randrange(60, 400))
        result.append(text)
        if number % 2:
            edited = list(text)
            for _ in range(chance.randrange(0, max(1, len(text) // 45))):
                edited[chance.randrange(len(text))] = "变"
            result.append("".join(edited))
    return result


def test_recall_and_precision_against_brute_force(texts: list[str]):
    truth = {
        (left, right)
        for right in range(len(texts))
        for left in range(max(0, right - 2), right)
        if brute(texts[left], texts[right]) >= 0.8
    }
    assert len(truth) > 120
    found = {(stays, goes) for goes, (stays, _similarity) in find(texts, 0.8).kept_for.items()}
    assert len(found & truth) >= 0.95 * len(truth)
    assert found <= truth


def test_the_reported_similarity_is_the_exact_one(texts: list[str]):
    for goes, (stays, similarity) in find(texts, 0.8).kept_for.items():
        assert similarity == pytest.approx(brute(texts[stays], texts[goes]), abs=1e-9)


def test_the_first_stays_and_finding_again_drops_none(texts: list[str]):
    found = find(texts, 0.8)
    assert all(stays < goes and stays not in found.kept_for for goes, (stays, _) in found.kept_for.items())
    rest = [text for row, text in enumerate(texts) if row not in found.kept_for]
    again = find(rest, 0.8)
    assert not again.kept_for
    assert again.cluster == list(range(len(rest)))


def test_a_chain_is_one_cluster_of_which_only_close_ones_go():
    base = sentence(random.Random(1), 300)
    second = base[:270] + sentence(random.Random(2), 30)  # 266 of 326 shingles: 0.82
    third = sentence(random.Random(3), 30) + second[30:]
    assert brute(base, second) >= 0.8 > brute(base, third)
    assert brute(second, third) >= 0.8
    found = find([base, second, third], 0.8)
    assert set(found.kept_for) == {1}
    assert found.cluster == [0, 0, 0]


def test_a_template_of_thousands_takes_no_square_of_them():
    body = sentence(random.Random(4), 200)
    found = find([f"{body}{number}" for number in range(3000)], 0.8)
    assert len(found.kept_for) == 2999
    assert found.candidates < 3000 * 150
    assert set(found.cluster) == {0}


@pytest.mark.parametrize("together", [1, 37])
def test_parts_that_are_compared_alone_give_what_the_whole_gives(
    texts: list[str], together: int, monkeypatch: pytest.MonkeyPatch
):
    body = sentence(random.Random(4), 200)
    rows = [
        text for pair in zip(texts, [f"{body}{number}" for number in range(len(texts))], strict=True) for text in pair
    ]
    whole = find(rows, 0.8)
    monkeypatch.setattr(near_duplicates, "TOGETHER", together)
    assert find(rows, 0.8) == whole
    assert len(set(whole.cluster)) < len(rows)


def test_width_case_and_punctuation_do_not_count():
    assert characters("Ａｂｃ，１２３。").tolist() == characters("abc 123").tolist()
    assert find(["你好，世界！今天是个好日子", "你好世界今天是个好日子。"], 0.9).kept_for == {1: (0, 1.0)}


def test_short_and_empty_texts():
    assert find([], 0.8).kept_for == {}
    assert find(["", "", "好", "好", "。", "坏"], 0.8).kept_for == {3: (2, 1.0)}


def test_windows_cross_no_border():
    rows = ["一二三四五六七", "", "八九", "十一二三四"]
    flat, starts = joined(rows)
    grams, counts = windows(flat, starts, 5)
    assert counts.tolist() == [3, 0, 0, 1]
    alone = [ngrams(characters(row), 5).tolist() for row in (rows[0], rows[3])]
    assert grams.tolist() == alone[0] + alone[1]


def test_equal_ngrams_have_equal_hashes_wherever_they_stand():
    chance = random.Random(8)
    for n in (5, 8, 32):
        text, part = sentence(chance, 100), sentence(chance, n)
        at = chance.randrange(60)
        grams = ngrams(characters(text[:at] + part + text[at:]), n)
        assert grams[at] == ngrams(characters(part), n)[0]
        assert len(set(grams.tolist())) == len(grams)
