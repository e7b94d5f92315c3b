"""The topic of a conversation, from the words of aurora/clean/topics.yaml: Figure 1 of the paper, with open rules."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from aurora.core.yaml_files import read_yaml

WORDS = Path(__file__).with_name("topics.yaml")
LINE, PROMPT, ANSWER = (100, 300, 400)  # characters that are looked at: of the first line, the prompt, the answer
FIRST, REST, REPLY = 4, 2, 1  # weight of a word by its place
TASK, STRONG, WORD = 4, 2, 1  # and by its kind
WITHOUT = "daily life"  # topic of a conversation in which no word speaks
NONE = "none"  # key of the words that speak for no topic


class Word(NamedTuple):
    """A word and what it says."""

    text: str
    votes: tuple[tuple[int, int], ...]  # (topic, weight); empty for a word that only hides others


@cache
def _words() -> tuple[tuple[str, ...], dict[str, tuple[Word, ...]]]:
    """Names of the topics in order, and all words by their first two characters, the longest first."""
    content = read_yaml(WORDS)
    votes: dict[str, dict[int, int]] = {str(text).lower(): {} for text in content.pop(NONE)}
    for number, topic in enumerate(content.values()):
        for key, weight in (("task", TASK), ("strong", STRONG), ("words", WORD)):
            for text in topic.get(key, ()):
                votes.setdefault(str(text).lower(), {}).setdefault(number, weight)
    words: dict[str, list[Word]] = {}
    for text in sorted(votes, key=lambda text: (-len(text), text)):
        words.setdefault(text[:2], []).append(Word(text, tuple(votes[text].items())))
    return tuple(content), {start: tuple(found) for start, found in words.items()}


def names() -> tuple[str, ...]:
    """All topics, in the order of the file."""
    return _words()[0]


def topic(prompt: str, answer: str) -> str:
    """Topic of a conversation, by its first round."""
    topics, _ = _words()
    prompt = prompt[:PROMPT].lower()
    end = prompt.find("\n")
    end = min(LINE, len(prompt)) if end < 0 else min(LINE, end)
    sums = [0] * len(topics)
    seen: set[str] = set()
    for text, place in ((prompt[:end], FIRST), (prompt[end:], REST), (answer[:ANSWER].lower(), REPLY)):
        for word in _found(text):
            if word.text not in seen:
                seen.add(word.text)
                for number, weight in word.votes:
                    if weight < TASK or place > REPLY:
                        sums[number] += place * weight
    best = max(range(len(sums)), key=lambda number: (sums[number], -number))
    return topics[best] if sums[best] else WITHOUT


def _found(text: str) -> Iterator[Word]:
    """Words of the file in `text` from left to right, each the longest that begins there."""
    _, words = _words()
    end = 0  # of the word before
    for at, start in enumerate(map("".join, pairwise(f"{text} "))):
        if at < end or not (start in words or start[0] in words):
            continue
        for word in (*words.get(start, ()), *words.get(start[0], ())):
            if text.startswith(word.text, at) and _apart(word.text, text, at):
                yield word
                end = at + len(word.text)
                break


def _apart(word: str, text: str, at: int) -> bool:
    """Whether a Latin word is a whole word: `ai` is not in `said`. Chinese needs no blanks."""
    if not word[0].isascii():
        return True
    before, after = text[at - 1 : at] if at else "", text[at + len(word) : at + len(word) + 1]
    return not (word[0].isalpha() and before.isascii() and before.isalpha()) and not (
        word[-1].isascii() and word[-1].isalpha() and after.isascii() and after.isalpha()
    )
