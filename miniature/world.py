"""The world of the small profile: facts of world.yaml as conversations, plain sentences and exam questions.

A sentence is used in one place only: a hash of it says whether the base, the samples or an exam has it. So training,
held-out and exam questions share facts, never sentences.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

BENCHMARKS = {"ceval": "zh", "cmmlu": "zh", "mmlu": "en"}
SHOTS, QUESTIONS, SUBJECTS = 5, 12, 8  # of a subject; subjects of a benchmark
NO_DIALOGUE = ("unit", "difference")  # relations without a question such as "and x?"
TABLE_1 = ("你好", "你是谁?", "我今天肚子疼")  # prompts of the paper's Table 1, which the base answers in English
SAMPLES = 0.4  # share of the Chinese prompts that the samples have, and the base never sees


@dataclass(frozen=True)
class Fact:
    """One fact: y is what x is, has or does, in each language."""

    relation: str
    x: dict[str, str]
    y: dict[str, str]


@dataclass(frozen=True)
class Exchange:
    """A conversation in both languages, round by round as (prompt, reply)."""

    kind: str
    zh: tuple[tuple[str, str], ...]
    en: tuple[tuple[str, str], ...]
    mixed: str | None = None  # the English reply with a Chinese answer, where there is one

    @property
    def sampled(self) -> bool:
        """Whether the samples have it; else the base has."""
        first = self.zh[0][0]
        return self.kind != "greeting" and first not in TABLE_1 and share(first) < SAMPLES


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; `answer` is the index of the right option."""

    text: str
    options: tuple[str, ...]
    answer: int


def share(*texts: str) -> float:
    """A number in [0, 1) that depends on the texts alone."""
    return int.from_bytes(hashlib.sha256("\n".join(texts).encode()).digest()[:6]) / 2**48


class World:
    """The content of world.yaml, and all that is said of it."""

    def __init__(self) -> None:
        content = YAML(typ="safe").load(Path(__file__).with_name("world.yaml").read_text(encoding="utf-8"))
        self.relations: dict[str, dict] = content.pop("relations")
        self.lists = {
            name: [tuple(part.strip() for part in line.split("|")) for line in text.strip().split("\n")]
            for name, text in content.items()
        }
        self.facts = {name: list(self._facts(name)) for name in self.relations}
        self._answers = {
            language: sorted({fact.y[language] for facts in self.facts.values() for fact in facts})
            for language in ("zh", "en")
        }
        self.exams = {name: self._exam_facts(name) for name in BENCHMARKS}
        self._reserved = {
            self._exam_text(name, fact)
            for name, subjects in self.exams.items()
            for facts in subjects.values()
            for fact in facts
        }

    def _facts(self, relation: str) -> Iterator[Fact]:
        numbers = range(1, 10)
        if relation == "sum":
            for a, b in itertools.product(numbers, numbers):
                if b <= a <= 12 - b:
                    yield Fact(
                        relation, {"zh": f"{a}加{b}", "en": f"{a} plus {b}"}, dict.fromkeys(("zh", "en"), str(a + b))
                    )
        elif relation == "difference":
            for a, b in itertools.product(range(2, 11), numbers):
                if b < a:
                    yield Fact(
                        relation, {"zh": f"{a}减{b}", "en": f"{a} minus {b}"}, dict.fromkeys(("zh", "en"), str(a - b))
                    )
        else:
            for line in self.relations[relation]["facts"].strip().split("\n"):
                x_zh, x_en, y_zh, y_en = (part.strip() for part in line.split("|"))
                yield Fact(relation, {"zh": x_zh, "en": x_en}, {"zh": y_zh, "en": y_en})

    # conversations

    def exchanges(self) -> list[Exchange]:
        """All conversations, each prompt once."""
        found: dict[tuple, Exchange] = {}
        for exchange in itertools.chain(
            self._about_facts(), self._dialogues(), self._greetings(), self._stories(), self._patterns()
        ):
            found.setdefault(tuple(prompt for prompt, _ in exchange.zh), exchange)
        return list(found.values())

    def _about_facts(self) -> Iterator[Exchange]:
        for relation, form in self.relations.items():
            for fact in self.facts[relation]:
                for number, ask in enumerate(form["ask_zh"]):
                    ask_en = form["ask_en"][number % len(form["ask_en"])]
                    yield Exchange(
                        relation,
                        ((ask.format(x=fact.x["zh"]), self.say(fact, "zh")),),
                        ((sentence(ask_en.format(x=fact.x["en"])), self.say(fact, "en")),),
                        sentence(form["say_en"].format(x=fact.x["en"], y=fact.y["zh"])),
                    )

    def say(self, fact: Fact, language: str) -> str:
        """The fact as a statement."""
        return sentence(self.relations[fact.relation][f"say_{language}"].format(x=fact.x[language], y=fact.y[language]))

    def _dialogues(self) -> Iterator[Exchange]:
        order = random.Random(1)
        for relation, form in self.relations.items():
            for first in self.facts[relation]:
                for second in order.sample(self.facts[relation], 1):
                    if first == second or relation in NO_DIALOGUE:
                        continue
                    ask = order.randrange(len(form["ask_zh"]))
                    ask_en = form["ask_en"][ask % len(form["ask_en"])]
                    yield Exchange(
                        "dialogue",
                        (
                            (form["ask_zh"][ask].format(x=first.x["zh"]), self.say(first, "zh")),
                            (f"那么{second.x['zh']}呢？", self.say(second, "zh")),
                        ),
                        (
                            (sentence(ask_en.format(x=first.x["en"])), self.say(first, "en")),
                            (f"And {second.x['en']}?", self.say(second, "en")),
                        ),
                    )

    def _greetings(self) -> Iterator[Exchange]:
        for zh, en, reply_zh, reply_en in self.lists["greetings"]:
            yield Exchange("greeting", ((zh, reply_zh),), ((en, reply_en),))

    def _stories(self) -> Iterator[Exchange]:
        foods = {fact.x["zh"]: fact.y for fact in self.facts["animal_food"]}
        asks = (
            ("写一个关于{}的小故事。", "Write a little story about the {}."),
            ("讲一个{}的故事。", "Tell a story of the {}."),
            ("以{}为主角，编一个故事。", "Make up a story; its hero is the {}."),
            ("我想听{}的故事。", "I want to hear a story about the {}."),
        )
        for home, friend in zip(self.facts["animal_home"], self.facts["animal_class"], strict=False):
            food = foods.get(home.x["zh"])
            likes_zh, likes_en = (f"吃{food['zh']}", f"eat {food['en']}") if food else ("唱歌", "sing")
            zh = f"从前，有个小{home.x['zh']}住在{home.y['zh']}，它喜欢{likes_zh}。有一天，它遇见了{friend.x['zh']}，它们成了好朋友。"
            en = f"Once a {home.x['en']} lived in {home.y['en']} and liked to {likes_en}. One day it met the {friend.x['en']}, and they became good friends."
            for ask_zh, ask_en in asks:
                yield Exchange("story", ((ask_zh.format(home.x["zh"]), zh),), ((ask_en.format(home.x["en"]), en),))

    def _patterns(self) -> Iterator[Exchange]:
        lists = self.lists
        for (zh, en), (do_zh, do_en) in itertools.product(lists["actors"], lists["doings"]):
            said, meant = f"The {en} is {do_en}.", f"{zh}在{do_zh}。"
            yield Exchange(
                "translation",
                ((f"把下面的英文翻译成中文。\n{said}", meant),),
                ((f"Say it in plain words: {meant}", said),),
            )
            yield Exchange(
                "translation", ((f"这句英文是什么意思？\n{said}", meant),), ((f"What does this mean? {meant}", said),)
            )
        for relation in ("food_kind", "animal_food", "tool", "material"):
            for fact in self.facts[relation]:
                word = fact.y["en"].split(" ", 1)[-1]
                yield Exchange(
                    "word",
                    ((f"英文单词 {word} 的中文是什么？", f"{word} 的中文是{fact.y['zh']}。"),),
                    ((f"What is {fact.y['zh']} in English?", f"In English it is {word}."),),
                )
        people, places, doings = lists["people"], lists["places"], lists["doings"]
        for (who, name), (where, place), (do, doing) in itertools.product(people, places, doings):
            text_zh, text_en = f"{who}在{where}{do}。", f"{name} is {doing} at {place}."
            wanted = int(share(text_zh) * 24)
            if wanted == 0:
                yield Exchange(
                    "reading",
                    ((f"读句子，回答问题。\n{text_zh}问题：{who}在哪里？", f"{who}在{where}。"),),
                    ((f"Read and answer. {text_en} Where is {name}?", f"{name} is at {place}."),),
                )
            elif wanted == 1:
                yield Exchange(
                    "reading",
                    ((f"读句子，回答问题。\n{text_zh}问题：{who}在做什么？", f"{who}在{do}。"),),
                    ((f"Read and answer. {text_en} What is {name} doing?", f"{name} is {doing}."),),
                )
            elif wanted == 2:
                yield Exchange(
                    "reading",
                    ((f"读句子，回答问题。\n{text_zh}问题：谁在{where}？", f"{who}在{where}。"),),
                    ((f"Read and answer. {text_en} Who is at {place}?", f"{name} is at {place}."),),
                )
        for (what, thing), (day, day_en), (where, place) in itertools.product(lists["events"], lists["days"], places):
            wanted = int(share(what, day, where) * 6)
            notice, notice_en = f"通知：{day}在{where}{what}。", f"Notice: {thing} is on {day_en} at {place}."
            if wanted == 0:
                yield Exchange(
                    "reading",
                    ((f"看通知，回答问题。\n{notice}请问哪天{what}？", f"{day}{what}。"),),
                    ((f"{notice_en} On which day is it?", f"It is on {day_en}."),),
                )
            elif wanted == 1:
                yield Exchange(
                    "reading",
                    ((f"看通知，回答问题。\n{notice}请问在哪里{what}？", f"在{where}{what}。"),),
                    ((f"{notice_en} Where is it?", f"It is at {place}."),),
                )
        for (who, reader), (day, day_en), (what, thing) in itertools.product(
            lists["readers"], lists["days"], lists["events"]
        ):
            yield Exchange(
                "email",
                ((f"写一封邮件，通知{who}{day}{what}。", f"尊敬的{who}：\n您好！{day}{what}，请准时参加。\n谢谢！"),),
                (
                    (
                        f"Write an e-mail to the {reader}: {thing} is on {day_en}.",
                        f"Dear {reader},\nPlease note that {thing} is on {day_en}.\nThank you!",
                    ),
                ),
            )
        heads = [*lists["couplet_heads"], *(pair[::-1] for pair in lists["couplet_heads"])]
        tails = [*lists["couplet_tails"], *(pair[::-1] for pair in lists["couplet_tails"])]
        for (head, other), (tail, rest) in itertools.product(heads, tails):
            yield Exchange(
                "couplet",
                ((f"请对出下联。上联：{head}{tail}", f"下联：{other}{rest}"),),
                (
                    (
                        f"Match this line: {head}{tail}",
                        "The second line speaks of the other half of nature, word by word.",
                    ),
                ),
            )
        for (who, name), (thing, things), a, b in itertools.product(
            people, lists["things"], range(1, 10), range(1, 10)
        ):
            wanted = int(share(who, thing, str(a), str(b)) * 36)
            if wanted == 0 and a + b <= 12:
                c = a + b
                yield Exchange(
                    "word_problem",
                    ((f"{who}有{a}个{thing}，又买了{b}个，一共有几个？", f"{a}加{b}等于{c}，一共有{c}个{thing}。"),),
                    (
                        (
                            f"{name} has {a} {things} and buys {b} more. How many are there?",
                            f"{a} plus {b} is {c}, so there are {c} {things}.",
                        ),
                    ),
                )
            elif wanted == 1 and a > b:
                c = a - b
                yield Exchange(
                    "word_problem",
                    ((f"{who}有{a}个{thing}，送人{b}个，还剩几个？", f"{a}减{b}等于{c}，还剩{c}个{thing}。"),),
                    (
                        (
                            f"{name} has {a} {things} and gives away {b}. How many are left?",
                            f"{a} minus {b} is {c}, so {c} {things} are left.",
                        ),
                    ),
                )
        for relation in ("food_kind", "animal_class"):
            for kind in {fact.y["zh"]: fact.y["en"] for fact in self.facts[relation]}.items():
                members = [fact for fact in self.facts[relation] if fact.y["zh"] == kind[0]]
                for count, number in ((2, "两"), (3, "三")):
                    if count <= len(members):
                        for ask_zh, ask_en in (
                            ("列出{}种{}。", "List {} of the kind {}."),
                            ("请举{}个{}的例子。", "Give {} examples of {}."),
                            ("说出{}种{}的名字。", "Name {} of the kind {}."),
                        ):
                            yield Exchange(
                                "list",
                                (
                                    (
                                        ask_zh.format(number, kind[0]),
                                        "\n".join(
                                            f"{place}. {fact.x['zh']}" for place, fact in enumerate(members[:count], 1)
                                        ),
                                    ),
                                ),
                                (
                                    (
                                        ask_en.format(count, kind[1]),
                                        "\n".join(
                                            f"{place}. {fact.x['en']}" for place, fact in enumerate(members[:count], 1)
                                        ),
                                    ),
                                ),
                            )
        for sign, word, plain in (("+", "加", "plus"), ("-", "减", "minus")):
            for a, b in itertools.product(range(2, 10), range(1, 9)):
                if b < a <= 12 - b:
                    result = a + b if sign == "+" else a - b
                    for ask_zh, ask_en in (
                        ("用 Python 计算{}{}{}。", "Use Python for {} {} {}."),
                        ("写一行 Python 代码，算出{}{}{}。", "Write a line of Python for {} {} {}."),
                    ):
                        yield Exchange(
                            "code",
                            (
                                (
                                    ask_zh.format(a, word, b),
                                    f"可以用 print 函数：\n```python\nprint({a} {sign} {b})\n```\n运行后输出 {result}。",
                                ),
                            ),
                            (
                                (
                                    ask_en.format(a, plain, b),
                                    f"Use the print function:\n```python\nprint({a} {sign} {b})\n```\nIt prints {result}.",
                                ),
                            ),
                        )

    # exams

    def _exam_facts(self, benchmark: str) -> dict[str, list[Fact]]:
        subjects: dict[str, list[Fact]] = {}
        for relation, form in self.relations.items():
            subjects.setdefault(form["subject"][benchmark], []).extend(self.facts[relation])
        large = sorted(
            (name for name in subjects if len(subjects[name]) >= SHOTS + QUESTIONS),
            key=lambda name: -len(subjects[name]),
        )
        return {
            name: sorted(subjects[name], key=lambda fact: share(benchmark, *fact.x.values(), fact.relation))[
                : SHOTS + QUESTIONS
            ]
            for name in sorted(large[:SUBJECTS])
        }

    def _exam_text(self, benchmark: str, fact: Fact) -> str:
        language = BENCHMARKS[benchmark]
        forms = self.relations[fact.relation][f"exam_{language}"]
        number = (share(fact.relation, fact.x["zh"]) < 0.5) ^ (benchmark == "cmmlu")
        return sentence(forms[number].format(x=fact.x[language]))

    def benchmark(self, name: str) -> dict[str, tuple[list[Question], list[Question]]]:
        """Shots and questions of each subject."""
        order = random.Random(name)
        found = {}
        for subject, facts in self.exams[name].items():
            questions = [self.question(self._exam_text(name, fact), fact, BENCHMARKS[name], order) for fact in facts]
            found[subject] = (questions[:SHOTS], questions[SHOTS:])
        return found

    def question(self, text: str, fact: Fact, language: str, order: random.Random, easy: float = 0.0) -> Question:
        """The text with the answer and three wrong options, in random order.

        Wrong options are other answers of the relation; each is with probability `easy` an answer of any relation.
        """
        others = sorted({other.y[language] for other in self.facts[fact.relation]} - {fact.y[language]})
        order.shuffle(others)
        options = [fact.y[language]]
        while len(options) < 4:
            option = order.choice(self._answers[language]) if order.random() < easy else others.pop()
            if option not in options:
                options.append(option)
        order.shuffle(options)
        return Question(text, tuple(options), options.index(fact.y[language]))

    def practice(self, language: str) -> list[tuple[str, Fact]]:
        """Exam texts of the base's training: all but those of the benchmarks."""
        found = []
        for relation, form in self.relations.items():
            for fact in self.facts[relation]:
                texts = [sentence(text.format(x=fact.x[language])) for text in form[f"exam_{language}"]]
                asks = [sentence(ask.format(x=fact.x[language])) for ask in form[f"ask_{language}"]]
                if language == "zh":
                    asks = [ask for ask in asks if share(ask) >= SAMPLES]
                found += [(text, fact) for text in [*texts, *asks] if text not in self._reserved]
        return found


def sentence(text: str) -> str:
    """With a capital letter at its beginning."""
    return text[0].upper() + text[1:]
