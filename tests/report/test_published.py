"""This run's numbers against others': the band of published scores, the ledger, both protocols, router, checkpoints."""

from xml.etree import ElementTree

import pytest

from aurora.report.blocks import Picture, Table, markdown
from aurora.report.comparison import compare_questions, ledger
from aurora.report.inputs import ReportInputs
from aurora.report.published import (
    LANGUAGES,
    base_scores,
    checkpoints,
    confusion,
    forgetting,
    medical,
    other_tasks,
    protocols,
    router,
)
from aurora.report.write import read_paper


def score(accuracy: float, stderr: float = 0.004, n: int = 1000, **more: object) -> dict:
    return {"acc": accuracy, "stderr": stderr, "n": n} | more


def questions(answers: dict[tuple[str, str], str]) -> dict[tuple, tuple[str, str]]:
    """Every right answer is A."""
    return {
        (task, subject, place): (letter, "A")
        for (task, subject), letters in answers.items()
        for place, letter in enumerate(letters)
    }


BEFORE = questions({("ceval", "law"): "AB", ("cmmlu", "arts"): "BBBBBBBB", ("mmlu", "anatomy"): "AAAAAAAA"})
AFTER = questions({("ceval", "law"): "AB", ("cmmlu", "arts"): "AAAAAAAB", ("mmlu", "anatomy"): "BBBBBBBA"})
CATEGORIES = {("cmmlu", "arts"): "cmmlu_humanities", ("mmlu", "anatomy"): "mmlu_stem"}


def gathered(base: dict, tuned: dict, **more: object) -> ReportInputs:
    parts = {"clean": {}, "sft": {}, "merge": {}, "prompts": {}, "curve": []}
    parts |= {"questions": {"base": BEFORE, "tuned": AFTER}, "categories": CATEGORIES}
    return ReportInputs(paper=read_paper(), results={"base": base, "tuned": tuned}, **parts | more)


def rows(blocks: list) -> list[list[str]]:
    return [list(row) for block in blocks if isinstance(block, Table) for row in block.rows]


def test_a_base_outside_the_band_is_flagged() -> None:
    ours = {"ceval": score(0.535), "mmlu": score(0.66), "cmmlu": score(0.53)}
    blocks = base_scores(gathered(ours, ours))
    flags = next(row for row in rows(blocks) if row[0].startswith("outside"))
    # 53.0 has a standard error of 0.4, so that its interval does not reach 51.6.
    assert flags[1:5] == ["within 51.68 to 55.31", "-", "below 69.5 to 71.8", "above 51.6"]
    near = base_scores(gathered(ours | {"cmmlu": score(0.53, 0.01)}, ours))
    assert next(row for row in rows(near) if row[0].startswith("outside"))[4] == "within 51.6"
    text = markdown(blocks, "pictures")
    assert "MMLU 67.74 against 70.11 to 70.2, CMMLU 49.69 against 51.6" in text
    assert "does not measure its base" in text


def test_every_quoted_number_has_its_source() -> None:
    paper = read_paper()
    assert all(row["source"].startswith("github.com/") and " at " in row["source"] for row in paper["published"])
    untuned = [row for row in paper["published"] if row["untuned"]]
    assert [row.get("cmmlu") for row in untuned] == [51.6, None, 51.6, None]
    assert [row["step"] for row in paper["checkpoints"]] == [6000, 8000, 8000, 12000, 14000]


def test_the_ledger_pairs_by_language_benchmark_and_category() -> None:
    found = {item.name: item for item in ledger(BEFORE, AFTER, LANGUAGES, CATEGORIES)}
    assert list(found) == ["Chinese", "English", "ceval", "cmmlu", "mmlu", "cmmlu_humanities", "mmlu_stem"]
    assert (found["Chinese"].count, found["Chinese"].gained, found["Chinese"].lost) == (10, 7, 0)
    assert (found["English"].gained, found["English"].lost) == (0, 7)
    assert found["mmlu"] == compare_questions(BEFORE, AFTER)[0][2]

    table = rows(forgetting(gathered({}, {})))
    assert [row[0] for row in table[:2]] == ["all questions in Chinese", "all questions in English"]
    assert [row[-1] for row in table] == [
        "gained",
        "forgotten",
        "within chance",
        "gained",
        "forgotten",
        "gained",
        "forgotten",
    ]
    assert table[1][1:6] == ["8", "100.00", "12.50", "0", "7"]


def test_both_protocols_stand_in_one_table() -> None:
    part = {"too_long": 0, "categories": {"mmlu_stem": score(0.5)}}
    ours = {"mmlu": score(0.7), "paper": {"mmlu_en": score(0.68, **part)}}
    assert rows(protocols(gathered(ours, ours))) == [
        ["MMLU", "lm-eval", "70.00 ± 0.40", "70.00 ± 0.40", "-", "1,000"],
        ["MMLU", "paper, English prompt", "68.00 ± 0.40", "68.00 ± 0.40", "67.74", "1,000"],
        ["mmlu_stem", "paper, English prompt", "50.00 ± 0.40", "50.00 ± 0.40", "57.53", "1,000"],
    ]
    assert protocols(gathered({"mmlu": score(0.7)}, ours)) == []


def test_language_confusion_stands_beside_the_published() -> None:
    part = {"n": 100, "lpr": 0.27, "wpr": None, "zh_reply_rate": 0.3}
    ours = {"language_confusion": {"lcb": {"monolingual": {"okapi": part}}}}
    table = rows(confusion(gathered(ours, ours)))
    shares = [f"{share}\u00a0→\u00a0{share}" for share in ("27\u00a0%", "-", "30\u00a0%")]
    assert table[0] == ["monolingual okapi", "100", *shares, "base → tuned, measured"]
    assert table[1] == ["monolingual okapi", "-", "27\u00a0%", "70\u00a0%", "-", "mistral-8x7b, quoted"]
    assert confusion(gathered({}, {})) == []


def test_router_and_its_picture() -> None:
    part = {"tokens": 100, "entropy": 1.5, "max_load": 0.25}
    ours = {"router": {"Chinese": part, "English": part}}
    changes = {"Chinese": [0.1, 0.3], "English": [0.0, 0.02]}
    blocks = router(gathered(ours, ours, router_changes=changes))
    assert rows(blocks)[0] == ["Chinese", "100", "1.500", "1.500", "25.0", "25.0", "20.00"]
    (picture,) = [block.svg for block in blocks if isinstance(block, Picture)]
    ElementTree.fromstring(picture)
    assert router(gathered({}, ours)) == []


def test_checkpoints_are_drawn_against_their_step() -> None:
    values = dict.fromkeys(("loss", "zh_reply_rate", "lpr", "bleu_4", "rouge_1", "rouge_2", "rouge_l"), 2.5)
    scored = [{"step": step, "mmlu": score(0.68)} | values for step in (1000, 3000)]
    blocks = checkpoints(gathered(values, values, checkpoints=scored))
    table = rows(blocks)
    assert table[0] == ["1,000", *["2.5"] * 7, "measured; MMLU 68.00 %"]
    assert table[2] == ["base", *["2.5"] * 7, "measured"]
    assert table[4][:1] + table[4][4:] == ["6,000", "18.4134", "38.2669", "18.9526", "26.572", "quoted"]
    assert sum(isinstance(block, Picture) for block in blocks) == 1
    assert not any(isinstance(block, Picture) for block in checkpoints(gathered(values, values)))


def test_the_medical_examination_stands_beside_the_quoted() -> None:
    ours = {"medical": {"cmb": score(0.3, types={"医师考试": score(0.25)})}}
    assert rows(medical(gathered(ours, ours))) == [
        ["cmb", "30.00 ± 0.40", "30.00 ± 0.40", "1,000", "measured"],
        ["cmb, 医师考试", "25.00 ± 0.40", "25.00 ± 0.40", "1,000", "measured"],
        ["cmb, Aurora", "-", "29.87", "", "quoted"],
        ["cmb, Mistral-7B", "-", "22.26", "", "quoted"],
    ]
    assert medical(gathered({}, {})) == []


def test_further_tasks_stand_with_their_metrics() -> None:
    ours = {"other": {"aclue": {"acc,none": 0.5, "acc_stderr,none": 0.1}}}
    assert rows(other_tasks(gathered(ours, ours))) == [["aclue", "acc", "0.5000", "0.5000"]]
    assert other_tasks(gathered({}, {})) == []


@pytest.mark.parametrize("name", ["ceval", "mmlu", "cmmlu"])
def test_every_benchmark_has_a_language(name: str) -> None:
    assert LANGUAGES[name] in ("Chinese", "English")
