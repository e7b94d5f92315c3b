"""Replies against human answers: exact matches after normalisation, and words of jieba's dictionary."""

import random

import jieba
import pytest

from aurora.eval.answers import answer_metrics, dictionary_share, normalised

HUMAN = ["感冒的时候，应该多喝热水。如果没有好转，请去看医生。", "熊猫喜欢吃竹子。", "中国的首都是北京。"]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("香蕉是黄色的", "香蕉是黄色的。"),
        (" 香蕉是，黄色的！\n", "香蕉是黄色的。"),
        ("３加５等于８。", "3加5等于8。"),
        ("用 python 计算。", "用Python计算。"),
    ],
)
def test_punctuation_spaces_width_and_case_do_not_count(reply: str, answer: str) -> None:
    assert normalised(reply) == normalised(answer)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [("香蕉是红色的。", "香蕉是黄色的。"), ("3+5", "35"), ("Bananas are yellow.", "香蕉是黄色的。")],
)
def test_everything_else_counts(reply: str, answer: str) -> None:
    assert normalised(reply) != normalised(answer)


def test_only_short_chinese_answers_are_closed_questions() -> None:
    answers = ["香蕉是黄色的。", "很长的故事。" * 7, "The cat is eating.", "8", "北京。"]
    found = answer_metrics(["香蕉是黄色的", "很长的故事。" * 7, "The cat is eating.", "8", "上海。"], answers)
    assert (found["closed"], found["exact_match"]) == (2, 0.5)
    none = answer_metrics(["8"], ["8"])
    assert (none["closed"], none["exact_match"], none["word_share"]) == (0, None, None)


def test_the_share_of_words_tells_sense_from_noise() -> None:
    human = dictionary_share(HUMAN)
    characters = [character for text in HUMAN for character in text if character.isalpha()] * 20
    random.Random(1).shuffle(characters)
    noise = dictionary_share(["".join(characters)])
    assert human > 0.55 and noise < 0.5 * human
    assert dictionary_share(["Pandas like to eat bamboo."]) == 0
    assert dictionary_share(["3 + 5 = 8"]) is None
    assert dictionary_share(["熊猫 likes"]) == 2 / 7


def test_words_are_those_of_jieba_itself() -> None:
    """Against a Tokenizer that jieba has set up in its own way."""
    own = jieba.Tokenizer()
    for text in HUMAN:
        words = [word for word in own.cut(text, HMM=False) if len(word) > 1 and own.FREQ.get(word)]
        letters = sum(map(str.isalpha, text))
        assert dictionary_share([text]) == sum(map(len, words)) / letters
