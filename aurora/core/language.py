"""The language of a text: whether a Chinese reader would say that it is written in Chinese."""

import re
import unicodedata
from typing import Literal

from aurora.core.chinese import CHINESE_CHARACTER, CHINESE_RANGES

Language = Literal["Chinese", "mixed", "other", "none", "empty"]

# What belongs to no language. A fence that is never closed reaches to the end, as in a reply that was cut off.
CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`", re.DOTALL)
# Code without a fence, recognised by its line: it ends in ; { } or a call, assigns to one name, or opens like a directive.
CODE_LINE = re.compile(
    r"""^[ \t]*(?:
        (?:[^\n\u3000-\u9fff\uff00-\uffef]*(?:[;{}]|\w\([^\n\u3000-\u9fff]*\):?))
        | [\w.\[\]]+[ ]?[-+*/]?=[ ]?[^\s=][^\n\u3000-\u9fff\uff00-\uffef]*
        | \#include\b.* | import[ ][\w.]+ | from[ ][\w.]+[ ]import[ ].* | else: | try: | //.*
    )[ \t]*(?:(?:\#|//).*)?$""",
    re.MULTILINE | re.VERBOSE | re.ASCII,
)
FORMULA = re.compile(r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\$[^$\n]+\$", re.DOTALL)
ADDRESS = re.compile(r"(?:https?://|www\.)[!-~]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|<[/!]?[a-zA-Z][^<>]*>", re.ASCII)
KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\u31f0-\u31ff\uff66-\uff9d\uac00-\ud7a3]")
WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")  # of letters; run on text without Han and kana
RUN = re.compile(rf"[^{CHINESE_RANGES}。，、；：！？…“”《》（）「」]+")
PLAIN = """
    the an it is are was you we he she they this that these hello hi yes no sure sorry thank thanks please ok okay
    well so and or but of to in on for with from what how why who when where which my your our here there not can
    do does as at by be have has will would if then let
"""
PLAIN_WORDS = frozenset(PLAIN.split())  # no names, even where a capital letter begins them
NAME_WORDS = 3  # words in a row that can be a name or a term within a Chinese sentence
PHRASE_WORDS = 3  # words in a row, in small letters and in no Chinese, that are a phrase of another language
# U+FFFD, which replaces bytes that are no text, private and unassigned characters: no reader takes them for Chinese.
BROKEN = re.compile(r"[\ufffd\ue000-\uf8ff\ufff0-\ufffb\U000f0000-\U0010ffff]")
WORD_WEIGHT = 1.6  # Chinese characters that say as much as one English word, in translated text
CHINESE = 0.65  # share from which a text is Chinese; text given once in each language has about 0.5
MIXED = 0.1  # share from which it is at least mixed


def language(text: str) -> Language:
    """The language of a text.

    - "empty": no character but spaces.
    - "none": nothing in any language, once code, formulas, addresses, numbers and signs are left out.
    - "Chinese": at least 65 % of it is Chinese, measured in characters, where a word of another language counts
      as 1.6 characters. Names and terms are left out of the measure: at most three words in a row, each with a
      capital letter or next to a digit (Python, GPT-4, New York) and none a plain word (The, Hello), within text
      that has Chinese characters.
    - "mixed": at least 10 %; or more than that, but with a phrase of another language, which is a row of words of which
      three or more have no capital letter, such as "Sure, I can explain that in Chinese:".
    - "other": less. Kana, hangul and what is left of broken bytes (U+FFFD) count as another language, character by
      character.
    """
    if not text.strip():
        return "empty"
    prose = CODE_LINE.sub(" ", CODE.sub(" ", text))  # while a full-width ； is no ; yet
    prose = FORMULA.sub(" ", ADDRESS.sub(" ", unicodedata.normalize("NFKC", prose)))
    han = len(CHINESE_CHARACTER.findall(prose))
    foreign = WORD_WEIGHT * foreign_words(prose, bool(han))
    foreign += len(KANA.findall(prose)) + len(BROKEN.findall(prose))
    if not han and not foreign:
        return "none"
    share = han / (han + foreign)
    if share >= CHINESE and not has_phrase(prose):
        return "Chinese"
    return "mixed" if share >= MIXED else "other"


def foreign_words(prose: str, names: bool) -> int:
    """Words in letters other than Chinese and kana; with `names`, those that can be names are left out."""
    count = 0
    for run in RUN.findall(KANA.sub(" ", prose)):
        words = [match[0] for match in WORD.finditer(run) if CHINESE_CHARACTER.search(match[0]) is None]
        if names and len(words) <= NAME_WORDS and all(_can_be_name(word, run) for word in words):
            continue
        count += len(words)
    return count


def has_phrase(prose: str) -> bool:
    """Whether there is a phrase of another language: within a line, words of which three or more have no capital."""
    runs = (run for line in prose.split("\n") for run in RUN.findall(KANA.sub(" ", line)))
    return any(
        sum(word[0].islower() and len(word[0]) > 1 for word in WORD.finditer(run)) >= PHRASE_WORDS for run in runs
    )


def _can_be_name(word: str, run: str) -> bool:
    if word.lower() in PLAIN_WORDS:
        return False
    by_digit = re.search(rf"\d{re.escape(word)}|{re.escape(word)}[-.]?\d", run)
    return not word.islower() or len(word) == 1 or by_digit is not None
