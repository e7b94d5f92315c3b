"""One conversation under all rules that look at it alone: what is mended, what is cut, why it goes."""

import re
from collections.abc import Iterator
from functools import cache

from aurora.clean.answers import Fault, storable
from aurora.clean.filters import KANA, RULES, TRADITIONAL, traditional_share
from aurora.clean.params import Clean
from aurora.clean.parse_rows import Drop, Turns
from aurora.clean.repairs import CODE, MOJIBAKE, reread, visible, without_html
from aurora.core.messages import Message

SCRIPTS = re.compile("繁[体體]|[简簡][体體]|正[体體]字")  # a conversation about the scripts themselves
PASSES = 12  # a repair may lay another fault open; no real row needs more than three


def judge(turns: Turns | Drop, params: Clean) -> tuple[tuple[Message, ...], tuple[str, ...], Drop | None]:
    """Messages after all rules that look at one row, the names of repairs, and the reason if it goes.

    Repeats until nothing changes, so that judging the result again changes nothing.
    """
    if isinstance(turns, Drop):
        return (), (), Drop(turns.reason, storable(turns.evidence))
    messages, mended = turns.messages, list(turns.mended)
    for _ in range(PASSES):
        before = messages
        messages, drop = _once(messages, mended, params)
        if drop:
            return (), tuple(dict.fromkeys(mended)), Drop(drop.reason, storable(drop.evidence)[:400])
        if messages == before:
            return messages, tuple(dict.fromkeys(mended)), None
    return (), (), Drop("unstable", storable(messages[0].content[:200]))


def _once(
    messages: tuple[Message, ...], mended: list[str], params: Clean
) -> tuple[tuple[Message, ...], Drop | None]:
    messages = tuple(_mend(messages, mended, params))
    rounds, fault = whole_rounds(messages, mended, params)
    if not rounds:
        return (), Drop(fault.reason, fault.evidence)
    faults = [fault] if fault else []
    for switch, rule in RULES:
        if switch is None or getattr(params, switch):
            while rounds and (fault := rule(rounds, params)):
                faults.append(fault)
                rounds = rounds[: fault.index]
            if not rounds:
                return (), Drop(fault.reason, fault.evidence)
    for fault in faults:
        if params.faulty_round == "drop":
            return (), Drop(fault.reason, f"round {fault.index}: {fault.evidence}")
        mended.append(f"cut_at_{fault.reason}")
    return tuple(
        Message(role, text) for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)
    ), None


def _mend(messages: tuple[Message, ...], mended: list[str], params: Clean) -> Iterator[Message]:
    code = None  # whether a message so far is about code; asked where there is something to remove
    for number, message in enumerate(messages):
        text = message.content
        if params.mojibake and not text.isascii() and MOJIBAKE.search(text) and (right := reread(text)):
            text = right
            mended.append("encoding_repaired")
        if params.invisible_characters and (seen := visible(text)) != text:
            text = seen
            mended.append("invisible_removed")
        if params.html_remnants and ("<" in text or "&" in text) and (plain := without_html(text)) != text:
            code = code or any(CODE.search(other.content) for other in messages[: number + 1])
            if not code:
                text = plain
                mended.append("html_removed")
        if (inner := text.strip()) != text:
            text = inner
            mended.append("blanks_trimmed")
        if params.traditional == "convert" and traditional_share((text,)) >= TRADITIONAL:
            scripts = any(SCRIPTS.search(other.content) for other in messages)
            if not scripts and not KANA.search(text) and (simplified := _converter().convert(text)) != text:
                text = simplified
                mended.append("traditional_converted")
        yield Message(message.role, text) if text is not message.content else message


@cache
def _converter():
    from opencc import OpenCC

    return OpenCC("t2s")


def whole_rounds(
    messages: tuple[Message, ...], mended: list[str], params: Clean
) -> tuple[list[tuple[str, str]], Fault | None]:
    """(prompt, answer) of the whole rounds, and the fault behind them; no round and a fault if none is whole.

    Begins with the assistant or ends on the user: trimmed. A hollow or doubled turn in between: a fault there.
    """
    start, end = 0, len(messages)
    while start < end and (messages[start].role == "assistant" or not messages[start].content):
        start += 1
    while end > start and (messages[end - 1].role == "user" or not messages[end - 1].content):
        end -= 1
    if start == end or not any(message.role == "assistant" for message in messages[start:end]):
        filled = {message.role for message in messages if message.content}
        reason = "no_messages" if not messages else "empty_answer" if "user" in filled else "empty_prompt"
        if len(filled) == 2:
            reason = "no_whole_round"
        return [], Fault(0, reason, " / ".join(f"{m.role}: {m.content[:60]}" for m in messages[:4]))
    if params.wrong_roles == "drop" and (start or end < len(messages)):
        reason = "begins_with_assistant" if start else "ends_on_user"
        return [], Fault(0, reason, messages[start - 1 if start else end].content[:160])
    rounds: list[tuple[str, str]] = []
    fault = None
    for at in range(start, end, 2):
        pair = messages[at : min(at + 2, end)]
        if [message.role for message in pair] != ["user", "assistant"]:
            doubled = pair[-1] if pair[0].role == "user" else pair[0]
            fault = Fault(len(rounds), "roles_not_alternating", doubled.content[:160])
        elif not pair[0].content or not pair[1].content:
            reason = "empty_answer" if pair[0].content else "empty_prompt"
            fault = Fault(len(rounds), reason, (pair[0].content or pair[1].content)[:160])
        if fault:
            break
        rounds.append((pair[0].content, pair[1].content))
    if start:
        mended.append("leading_assistant_trimmed")
    if end < len(messages):
        mended.append("trailing_user_trimmed")
    return rounds, fault
