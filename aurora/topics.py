"""The topic of a conversation, by the words of aurora/topics.yaml: Figure 1 of the paper, with open rules."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

WORDS = Path(__file__).with_name("topics.yaml")
PROMPT, ANSWER = 300, 400  # characters that are looked at
TASK = 4  # weight of a word that says what is asked for
WITHOUT = "daily life"  # topic of a conversation in which no word speaks


class Word(NamedTuple):
    """A word and the topic that it speaks for."""

    text: str
    topic: int
    weight: int


@cache
def _words() -> tuple[tuple[str, ...], dict[str, tuple[Word, ...]]]:
    """Names of the topics in order, and all words by their first two characters."""
    from ruamel.yaml import YAML

    content = YAML(typ="safe").load(WORDS.read_text(encoding="utf-8"))
    words: dict[str, list[Word]] = {}
    for word in (
        Word(str(text).lower(), number, weight)
        for number, topic in enumerate(content.values())
        for key, weight in (("task", TASK), ("strong", 2), ("words", 1))
        for text in topic.get(key, ())
    ):
        words.setdefault(word.text[:2], []).append(word)
    return tuple(content), {start: tuple(found) for start, found in words.items()}


def names() -> tuple[str, ...]:
    """All topics, in the order of the file."""
    return _words()[0]


def topic(prompt: str, answer: str) -> str:
    """Topic of a conversation, by its first round."""
    topics, words = _words()
    prompt, answer = prompt[:PROMPT].lower(), answer[:ANSWER].lower()
    sums = [0] * len(topics)
    text = f"{prompt}\n{answer}"
    starts = set(text)  # words of one character
    starts.update(map("".join, pairwise(text)))
    for start in starts & words.keys():
        for word in words[start]:
            if word.text in prompt and _apart(word.text, prompt):
                sums[word.topic] += 3 * word.weight
            elif word.weight < TASK and word.text in answer and _apart(word.text, answer):
                sums[word.topic] += word.weight
    best = max(range(len(sums)), key=lambda number: (sums[number], -number))
    return topics[best] if sums[best] else WITHOUT


def _apart(word: str, text: str) -> bool:
    """Whether a Latin word stands alone somewhere: `ai` is not in `said`. Chinese needs no blanks."""
    if not word.isascii() or not word.isalpha():
        return True
    at = text.find(word)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(word) : at + len(word) + 1]
        if not (before.isascii() and before.isalpha()) and not (after.isascii() and after.isalpha()):
            return True
        at = text.find(word, at + 1)
    return False


def table(topics: Iterable[str]) -> str:
    """CSV topic,rows of all topics, the largest first."""
    counts = Counter(topics)
    order = sorted(names(), key=lambda name: (-counts[name], names().index(name)))
    return "topic,rows\n" + "".join(f'"{name}",{counts[name]}\n' for name in order)
