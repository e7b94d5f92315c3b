"""Replies held against the human answers to the same prompts: exact matches, and words that a dictionary knows."""

import unicodedata
from collections.abc import Sequence

from aurora.core.chinese import CHINESE_CHARACTER
from aurora.core.language import language
from aurora.eval.chinese_words import segmenter

CLOSED = 40  # characters; a question with a longer human answer has many right answers


def answer_metrics(replies: Sequence[str], answers: Sequence[str]) -> dict[str, float | int | None]:
    """Shares over replies to Chinese prompts and the human answers to them.

    `exact_match` is the share of closed questions whose reply is the human answer, once both are normalised; `closed`
    counts those questions: their human answer is Chinese and has at most 40 characters. `word_share` is
    `dictionary_share` of the replies, and `human_word_share` that of the human answers. A share of nothing is None.
    """
    closed = [
        normalised(reply) == normalised(answer)
        for reply, answer in zip(replies, answers, strict=True)
        if len(answer) <= CLOSED and language(answer) == "Chinese"
    ]
    return {
        "exact_match": sum(closed) / len(closed) if closed else None,
        "closed": len(closed),
        "word_share": dictionary_share(replies),
        "human_word_share": dictionary_share(answers),
    }


def normalised(text: str) -> str:
    """The text in NFKC and lower case, without punctuation, spaces and control characters."""
    return "".join(
        character
        for character in unicodedata.normalize("NFKC", text).lower()
        if unicodedata.category(character)[0] not in "PZC"
    )


def dictionary_share(texts: Sequence[str]) -> float | None:
    """Share of the texts' letters that belong to Chinese words of two or more characters of jieba's dictionary.

    Letters of other languages count as standing in none; digits and signs do not count. None for texts without
    letters. Sensible Chinese has some 0.6 to 0.8, since many of its words have one character; characters in random
    order have less than 0.2.
    """
    cutter = segmenter()
    known = letters = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        for word in cutter.cut(text, HMM=False):
            if len(word) > 1 and cutter.FREQ.get(word) and CHINESE_CHARACTER.search(word):
                known += len(word)
    return known / letters if letters else None
