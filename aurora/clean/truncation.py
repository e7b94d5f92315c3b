"""Finds answers that were cut off mid-text, by how they end."""

import re
from collections.abc import Sequence

from aurora.core.chinese import CHINESE_CHARACTER, chinese_characters

ENDS = "。！？!?….．~～；;:：\"'”’」』）)】》〉>]}`*|^_、-—=%％℃°$￥€©®✓✔"
SENTENCE = re.compile(r"[。！？!?；;]")
EMOJI = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff\ufe0f]$")
LIST_MARK = re.compile(
    r"^\s*\\?(?:[-*•·●○]|\d{1,3}\s*[.、)）:：]|[(（](?:\d{1,3}|[一二三四五六七八九十]{1,3})[)）]|[一二三四五六七八九十]{1,3}、|第.{1,3}[、：:]|\|)\s*"
)
BARE_MARK = re.compile(r"^\s*(?:[-*•●○]|\d{1,3}\s*[.、)）]?|[(（]\d{1,3}[)）]?)\s*$")
SIGNATURE = re.compile(
    r"此致|敬礼|敬上|祝好|谢谢|署名|签名|您的|你的|日期|姓名|年.{1,3}月|最佳祝|best|regards|sincerely|yours|thank|作者|来源",
    re.IGNORECASE,
)
# A link, an address, hash tags, who said it, a heading: complete without an end mark.
UNMARKED_END = re.compile(
    r"https?://\S+$|\S+@\S+$|[#＃][^\s#，。]{1,30}$|[\"”』》」]\s*(?:-|—|–)+\s*[^\s，。][^，。]{0,24}$|^#"
)
SUMMING_UP = re.compile(r"以上|总之|总的来说|总而言之|综上|因此|所以|这些|希望|此外|另外|最后")
BEGINNING = re.compile(  # of a paragraph of prose
    r"总|综上|因此|所以|此外|另外|最后|首先|其次|然而|但|如果|对于|至于|根据|作为|需要|一般|无论|不过|同时|请注意|在[^，]{2,}(?:时|中|下|方面)"
)
OPTION = re.compile(r"(?:^|[\s。！？!?：:；;])\d{1,2}\s?[.、)）．]\s?\D")  # one of several in a line
CODE = re.compile(
    r"[=;{}<>≈^]|\d\s*[-+*/×÷]\s*\d|^(?:return|print|def|for|if|else|import|var|let|const|public|int|end|pass)\b|\w\(|\)$"
)
# Items of one kind and no sentence: symptoms, numbers, names.
ENUMERATION = re.compile(
    r"(?:^|[:：。\n])(?![^\n]*(?:\d[.、]\s|[一二三]是))(?:[^；;。，\n]{1,16}[；;]\s*){2,}[^；;。，\n]{1,16}$"
    r"|(?:[\w.%-]{1,16}[,，]\s?){3,}[\w.%-]{1,16}$",
    re.ASCII,
)
LISTED = re.compile(r"、[^。！？!?，]{1,24}等{1,2}$")  # … 腹痛、水肿等
OPENED = re.compile(r"(?:（[^）)]*|《[^》]*|“[^”\"]*|「[^」]*|【[^】]*)$")  # a bracket that is never closed
WISH = re.compile(
    r"祝(?:你|您|愿|大家|患者)?[^，。]{0,6}(?:康复|健康|愉快|顺利|好运|快乐|幸福|平安)$|希望[^，。]{0,12}(?:帮助|帮到[你您]?|有用|满意)$"
)
HABIT_FROM = 20  # characters of an answer that can show whether a source ends its sentences with a mark
HABIT = 0.1  # share of unmarked ends among whole short answers, from which they are a habit; models have 0.02 at most
HABIT_OF_ALL = 0.35  # the same among long answers, of which no model's are cut so often
LEAST = 20  # answers that a source needs to show a habit
CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
DANGLING = re.compile(
    r"(?:因为|所以|但是?|而且|并且|以及|或者?|如果|虽然|由于|为了|例如|比如|包括|和|与|的|在|把|被|从|对于?|是|了解|将|其|这|那|[×÷])$"
)
COLLOQUIAL = re.compile(r"(?:[的是在这那和]|了解|对于?)$")  # of them, those on which people who set no marks end
GO_ON = re.compile(
    r"^\W*(?:请|请你|您|你)?\W*(?:继续|繼續|接着|接著|往下|接下去|写完|说完|接$|续$|連$|连$|go on|continue|next|keep going|more|还有呢?|然后呢?|然後|后面呢|下一?段)",
    re.IGNORECASE,
)


def asks_to_go_on(prompt: str) -> bool:
    """Whether a prompt such as `继续` asks for the rest of the answer before it."""
    return len(prompt) <= 40 and GO_ON.match(prompt.rstrip("。.！! ")) is not None


def ends_unmarked(answers: Sequence[str], shortest: int) -> bool:
    """Whether a source ends complete answers without a mark by habit, as people often do; `answers` are some of its.

    A limit of length cuts long answers. So where short answers in whole sentences lack the last mark too, its lack
    says nothing of this source. `shortest` as `cut_off` takes it.
    """
    for low, high, share in ((HABIT_FROM, shortest, HABIT), (shortest, 1 << 30, HABIT_OF_ALL)):
        texts = [text for text in map(str.strip, answers) if low <= len(text) < high]
        prose = [text for text in texts if _is_prose(text)]
        if len(prose) >= LEAST:
            return sum(text[-1] not in ENDS for text in prose) >= share * len(prose)
    return False


def _is_prose(text: str) -> bool:
    """One paragraph with a mark between sentences, that ends on a Chinese character or on a mark."""
    last = text[-1]
    return (
        "\n" not in text
        and ("，" in text or "。" in text[:-1])
        and (last in "。！？!?….；" or bool(CHINESE_CHARACTER.match(last)))
        and not UNMARKED_END.search(text)
    )


def cut_off(answer: str, shortest: int, unmarked: bool = False) -> str | None:
    """The last characters of an answer that ends mid-text, else None.

    `shortest`: characters from which a missing end mark counts. Shorter answers are cut off only where no complete text
    ends so: in an open code block or bracket, on a comma, on a conjunction behind whole sentences.
    `unmarked`: the source leaves out end marks by habit (`ends_unmarked`), so that only the latter count, but for commas.
    """
    text = answer.rstrip()
    if not text:
        return None
    end = text[-40:]
    if text.count("```") % 2 and not text.endswith("```"):
        return end  # a code block was opened and not closed
    last = text[-1]
    if last in "，,、（(“《「【×÷":
        return end if len(text) >= 40 and not (unmarked and last in "，,、") else None
    prose = CODE_BLOCK.sub("\n", text) if "```" in text else text  # how code ends its lines says nothing of sentences
    lines = [line.strip() for line in prose.split("\n") if line.strip()]
    if not lines:
        return None
    line = lines[-1]
    if last not in ENDS and OPENED.search(line) and len(text) >= shortest:
        return end
    if unmarked:
        open_end = DANGLING.search(line) and not COLLOQUIAL.search(line) and SENTENCE.search(text)
        return end if open_end and len(text) >= shortest else None
    if BARE_MARK.match(line) and LIST_MARK.match(line + " ") and len(lines) > 3:
        return end if LIST_MARK.match(lines[-2]) or len(text) >= shortest else None  # `28.` or `-`, and no item
    if last in ENDS or EMOJI.search(text) or text.endswith("```"):
        return None
    if line.isdigit() and len(lines) > 3:
        return end if LIST_MARK.match(lines[-2]) else None  # `28` behind `27. …`
    if not last.isalnum():
        return None
    if len(text) < shortest:  # a limit of length cuts long answers, and people leave marks out of short ones
        return end if SENTENCE.search(line) and DANGLING.search(line) else None
    return end if _mid_sentence(line, lines) else None


def _mid_sentence(line: str, lines: list[str]) -> bool:
    """Whether an unmarked last line is unlike the lines before it, which say how this text ends its lines."""
    if any(whole.search(line) for whole in (UNMARKED_END, ENUMERATION, LISTED, WISH)):
        return False
    if CODE.search(line) and 3 * chinese_characters(line) < len(line):
        return False  # a formula or a statement has no end mark
    if len(OPTION.findall(line)) > 1 and re.search("[？?]", line):
        return False  # choices in one line, after a question
    before = lines[:-1][-12:]
    if LIST_MARK.match(line):  # items are like items, not like the text before them
        start = len(before)
        while start and LIST_MARK.match(before[start - 1]):
            start -= 1
        before = before[start:] or before
    unmarked = [other for other in before if other[-1] not in ENDS and len(other) >= 4]
    prose = bool(SENTENCE.search(line))
    if prose and len(line) >= 20:
        return True  # full sentences, and then one without its end
    if not before:
        return len(line) >= 60
    if (
        len(line) <= 24
        and "，" not in line
        and any(SIGNATURE.search(other) for other in lines[-3:] if len(other) <= 24)
    ):
        return False
    if len(line) >= 10 and SUMMING_UP.match(line) and not line.endswith(("等", "等等")):
        return True
    if before[-1][-1] in "。！？；" and BEGINNING.match(line):
        return True
    share = len(unmarked) / len(before)
    if LIST_MARK.match(line):
        return share < 0.34
    if len(line) < 16 and not DANGLING.search(line):
        # A few characters can be a name or a result; behind nothing but whole sentences they are a beginning.
        return share == 0 and sum(map(len, lines)) >= 200 and "：" not in line and ":" not in line
    return share < 0.34
