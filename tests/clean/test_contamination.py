"""Questions of benchmarks in their true files, and conversations that hold one."""

import json
import random
import unicodedata
from pathlib import Path

import pytest

from aurora.clean.contamination import Question, Questions, read_questions
from aurora.core.errors import DataError

CHINESE = Question("ceval/test:0", "下列关于光合作用暗反应阶段的叙述，错误的是____。", ("甲", "乙", "丙", "丁"))
ENGLISH = Question(
    "mmlu/test:0", "Which of the following structures of the brain stem controls breathing?", ("a", "b", "c", "d")
)
SHARED = [
    Question(
        "cmmlu/test:1",
        "下列说法正确的是",
        ("地球是平的而且不动", "太阳绕着地球转动", "月亮自己会发光", "地球绕着太阳转动"),
    ),
    Question(
        "cmmlu/test:2",
        "下列说法正确的是",
        ("水是单质不是化合物", "铁是金属元素之一", "氧气不能支持燃烧", "食盐就是纯净物"),
    ),
]


def found(*turns: str, share: float = 0.8) -> str | None:
    index = Questions([CHINESE, ENGLISH, *SHARED], share)
    hit = index.find([["无关的一轮", "回答"], list(turns)])
    assert hit[0] is None
    return hit[1] and hit[1][0]


def test_a_question_is_found_whatever_its_punctuation_width_and_surroundings():
    assert found("请回答：下列关于光合作用暗反应阶段的叙述, 错误的是（  ）", "选A") == "ceval/test:0"
    assert found("which of the following STRUCTURES of the brain-stem controls breathing", "C") == "mmlu/test:0"
    assert found("你好", "好的，题目：下列关于光合作用暗反应阶段的叙述，错误的是哪一个？") == "ceval/test:0"


def test_part_of_a_question_is_not_the_question():
    assert found("光合作用的暗反应阶段是什么？", "是碳固定的过程。") is None
    assert found("Which of the following is right?", "The brain stem controls breathing.") is None


def test_words_that_serve_several_questions_need_their_options():
    assert found("下列说法正确的是哪一句", "第一句") is None
    assert (
        found(
            "下列说法正确的是\nA. 水是单质不是化合物\nB. 铁是金属元素之一\nC. 氧气不能支持燃烧\nD. 食盐就是纯净物", "B"
        )
        == "cmmlu/test:2"
    )


def test_a_short_question_counts_as_a_whole_prompt():
    index = Questions([Question("cmmlu/x:0", "强奸属于", ("甲", "乙", "丙", "丁"))], 0.8)
    assert index.find([["强奸属于？", "犯罪"], ["强奸属于什么犯罪行为呢", "重罪"]]) == [("cmmlu/x:0", 1.0), None]


def test_a_term_is_no_question():
    stem = "传染性单核细胞增多症____"
    index = Questions(
        [Question("ceval/x:0", stem, ("由EB病毒引起", "由流感病毒引起", "由细菌引起", "由真菌引起"))], 0.8
    )
    turns = [["传染性单核细胞增多症有哪些症状？", "发热、咽痛。"], ["传染性单核细胞增多症", "是一种疾病。"]]
    assert index.find(turns) == [None, None]
    options = "A. 由EB病毒引起 B. 由流感病毒引起 C. 由细菌引起 D. 由真菌引起"
    assert index.find([[f"传染性单核细胞增多症（  ）\n{options}", "A"]])[0][0] == "ceval/x:0"


def plain(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).lower()))


def test_shares_are_those_of_plain_python_sets():
    """500 conversations that hold whole questions, parts of them, or nothing, against sets of Python's strings."""
    chance = random.Random(11)

    def made(chinese: bool, length: int) -> str:
        letters = range(0x4E00, 0x5200) if chinese else range(ord("a"), ord("z") + 1)
        text = [chr(chance.choice(letters)) for _ in range(length)]
        for _ in range(length // 6):
            text.insert(chance.randrange(len(text)), chance.choice("，。 ？"))
        return "".join(text)

    questions = [
        Question(f"own/test:{n}", made(n % 2 == 0, chance.randrange(61, 110)), ("1", "2", "3", "4")) for n in range(80)
    ]
    sets = []
    for question in questions:
        stem = plain(question.text)
        n = 32 if stem.isascii() else 8
        sets.append((question.place, n, {stem[at : at + n] for at in range(len(stem) - n + 1)}))
    index = Questions(questions, 0.6)
    conversations = []
    for _ in range(500):
        turns = []
        for _ in range(chance.randrange(1, 5)):
            text = chance.choice(questions).text
            start, end = sorted(chance.sample(range(len(text) + 1), 2))
            part = chance.choice([text, text[start:end], text[: end + 1].upper(), ""])
            turns.append(made(True, chance.randrange(9)) + part + made(False, chance.randrange(9)))
        conversations.append(turns)
    for turns, found in zip(conversations, index.find(conversations), strict=True):
        texts = [plain(turn) for turn in turns]
        shares = {
            place: sum(any(gram in text for text in texts) for gram in grams) / len(grams) for place, n, grams in sets
        }
        best = max(shares.values())
        assert (found is not None) is (best >= 0.6)
        if found:
            assert found[1] == pytest.approx(best) and shares[found[0]] == pytest.approx(best)


def folder(tmp_path: Path, format_: str, files: dict[str, str]) -> Path:
    target = tmp_path / format_
    for name, text in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    manifest = {"source": format_, "kind": "benchmark", "format": format_, "rows": None, "files": []}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_each_benchmarks_columns(tmp_path: Path):
    mmlu = folder(
        tmp_path,
        "mmlu",
        {"data/test/a_test.csv": 'What?,"1, 2",3,4,5,B\n', "data/auxiliary_train/x.csv": "no,1,2,3,4,A\n"},
    )
    assert read_questions(mmlu) == [Question("mmlu/data/test/a_test.csv:0", "What?", ("1, 2", "3", "4", "5"))]
    ceval = folder(tmp_path, "ceval", {"val/b_val.csv": "id,question,A,B,C,D,answer\n0,问,甲,乙,丙,丁,A\n"})
    assert read_questions(ceval)[0].text == "问"
    cmmlu = folder(tmp_path, "cmmlu", {"test/c.csv": "\ufeff,Question,A,B,C,D,Answer\n0,问,甲,乙,丙,丁,A\n"})
    assert read_questions(cmmlu)[0].options == ("甲", "乙", "丙", "丁")


def test_a_benchmark_that_is_none_is_one_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"c\.csv: no column 'Question' in its header"):
        read_questions(folder(tmp_path, "cmmlu", {"test/c.csv": "0,问,甲,乙,丙,丁,A\n"}))
    with pytest.raises(DataError, match="line 1: 2 fields, not question"):
        read_questions(folder(tmp_path, "mmlu", {"test/a.csv": "What?,1\n"}))
    with pytest.raises(DataError, match="no question in dev, val or test"):
        read_questions(folder(tmp_path, "ceval", {"other/a.csv": "x\n"}))


@pytest.mark.slow
def test_planted_real_questions_are_found(real_data: Path, tmp_path: Path):
    """600 questions of each benchmark alone as a prompt (where they ask), and with options: at least 0.95 each; rows that hold none: none."""
    questions = []
    for name in ("mmlu", "ceval", "cmmlu"):
        link = tmp_path / name
        link.mkdir()
        (link / "files").symlink_to(real_data / "benchmarks" / name)
        manifest = {"source": name, "kind": "benchmark", "format": name, "rows": None, "files": []}
        (link / "manifest.json").write_text(json.dumps(manifest))
        for path in sorted((real_data / "benchmarks" / name).rglob("*.csv")):
            inside = path.relative_to(real_data / "benchmarks" / name)
            (link / inside).parent.mkdir(parents=True, exist_ok=True)
            (link / inside).symlink_to(path)
        (link / "files").unlink()
        questions += read_questions(link)
    assert len(questions) == 285 + 1531 + 14042 + 260 + 1346 + 12342 + 335 + 11582
    index = Questions(questions, 0.8)
    chance = random.Random(2)
    for name in ("mmlu", "ceval", "cmmlu"):
        sample = chance.sample([question for question in questions if question.place.startswith(name)], 600)
        alone = index.find([[question.text, "A"] for question in sample])
        options = ["\n".join([q.text, *(f"{x}. {o}" for x, o in zip("ABCD", q.options, strict=True))]) for q in sample]
        whole = index.find([[text, "B"] for text in options])
        print(name, sum(map(bool, alone)) / 600, sum(map(bool, whole)) / 600)
        assert sum(map(bool, alone)) >= 0.95 * 600
        assert sum(map(bool, whole)) >= 0.95 * 600
