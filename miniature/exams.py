"""Exam questions as text: the prompts of lm-eval's stock tasks, for the training of the base."""

import random
from dataclasses import dataclass

from miniature.world import BENCHMARKS, Fact, Question, World

LETTERS = "ABCD"
HEADS = {
    "ceval": "以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n",
    "cmmlu": "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n",
    "mmlu": "The following are multiple choice questions (with answers) about {}.\n\n",
}
TITLES = {
    "ceval": ["基础医学", "中国语言文学", "公务员", "高中生物", "高中地理", "初中生物", "初中数学", "植物保护"],
    "cmmlu": ["中国饮食文化", "中国历史", "临床知识", "小学常识", "初等数学", "高中生物", "高中地理", "社会学"],
    "mmlu": [
        "elementary mathematics",
        "global facts",
        "high school biology",
        "high school geography",
        "miscellaneous",
        "nutrition",
        "sociology",
        "clinical knowledge",
    ],
}
ENDS = {"zh": "\n答案：", "en": "\nAnswer:"}
HEADED = 0.9  # share of the papers that begin with a head


@dataclass(frozen=True)
class Paper:
    """Some questions of one subject with their answers, one behind the other."""

    text: str
    headed: bool
    language: str
    answers: tuple[int, ...]
    options: tuple[tuple[str, ...], ...]  # of each question


class Papers:
    """Draws papers on the practice questions of the world, which no benchmark has."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.practice = {language: world.practice(language) for language in ("zh", "en")}
        self.by_subject: dict[str, dict[str, list[tuple[str, Fact]]]] = {name: {} for name in BENCHMARKS}
        for name, language in BENCHMARKS.items():
            for text, fact in self.practice[language]:
                self.by_subject[name].setdefault(self._subject(name, fact), []).append((text, fact))

    def _subject(self, name: str, fact: Fact) -> str:
        return self.world.relations[fact.relation]["subject"][name]

    def draw(self, order: random.Random, count: int, name: str, easy: float) -> Paper:
        """A paper of `count` questions in the form of a benchmark; `easy` as in `World.question`."""
        language = BENCHMARKS[name]
        subject = self._subject(name, order.choice(self.practice[language])[1])
        pool = self.by_subject[name][subject]
        chosen = order.sample(pool, min(count, len(pool)))
        headed = order.random() < HEADED
        head = HEADS[name].format(order.choice(TITLES[name])) if headed else ""
        questions = [self.world.question(text, fact, language, order, easy) for text, fact in chosen]
        asked = (f"{as_text(question, language)} {LETTERS[question.answer]}" for question in questions)
        return Paper(
            head + "\n\n".join(asked),
            headed,
            language,
            tuple(question.answer for question in questions),
            tuple(question.options for question in questions),
        )


def as_text(question: Question, language: str) -> str:
    """A question up to the place of its letter."""
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=True))
    return question.text + options + ENDS[language]
