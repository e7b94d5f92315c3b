"""Applies all rules to one conversation: repairs it, cuts it at the first faulty round, or drops it with a reason."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from aurora.clean.answers import Fault, storable
from aurora.clean.filters import KANA, RULES, TRADITIONAL, traditional_share, truncated_answer
from aurora.clean.params import Clean
from aurora.clean.parse_rows import Drop, Turns
from aurora.clean.repairs import CODE, MOJIBAKE, reread, visible, without_entities, without_html
from aurora.clean.template_markers import without_markers
from aurora.core.messages import Message, Round

SCRIPTS = re.compile("繁[体體]|[简簡][体體]|正[体體]字")  # a conversation about the scripts themselves
PASSES = 12  # a repair can reveal another fault; no real row needs more than three


@dataclass(frozen=True, slots=True)
class Applied:
    """Result of the rules for one row: its rounds, or the reason why it is dropped."""

    rounds: tuple[Round, ...]
    system: str = ""
    tools: str = ""
    repaired: tuple[str, ...] = ()  # names of repairs
    drop: Drop | None = None


def apply_rules(turns: Turns | Drop, params: Clean, unmarked: bool = False) -> Applied:
    """Applies every rule that needs only this row.

    `unmarked` as `aurora.clean.truncation.cut_off` takes it. Repeats until nothing changes, so that applying the
    rules to the result changes nothing.
    """
    if isinstance(turns, Drop):
        return Applied((), drop=Drop(turns.reason, storable(turns.evidence)))
    repaired = list(turns.repaired)
    messages = without_markers(turns.messages, repaired) if params.template_markers else turns.messages
    system, messages = _system_first(messages)
    given = [message.content for message in messages]
    texts = _repair(given, repaired, params)
    messages = [
        Message(message.role, text, message.train, message.tool_calls)
        for message, text in zip(messages, texts, strict=True)
    ]
    rounds, fault = whole_rounds(messages, repaired, params)
    drop = Drop(fault.reason, fault.evidence) if fault and not rounds else None
    again = texts != given or 2 * len(rounds) != len(messages)  # a repair may make room for another
    for _ in range(PASSES):
        if drop:
            break
        before = rounds
        if again:
            rounds = _repaired_rounds(rounds, repaired, params)
        rounds, drop = _once(rounds, fault, repaired, params, unmarked)
        fault, again = None, True
        if rounds == before:
            break
    else:
        drop = Drop("unstable", rounds[0].prompt[:200])
    system = (visible(system) if params.invisible_characters else system).strip()
    if not drop and not any(each.train for each in rounds):
        drop = Drop("not_to_train", rounds[0].answer[:160])
    names = tuple(dict.fromkeys(repaired))
    if drop:
        return Applied((), repaired=names, drop=Drop(drop.reason, storable(drop.evidence)[:400]))
    tools = turns.tools if any(each.steps for each in rounds) else ""
    masked = ("answer_masked",) if not all(each.train for each in rounds) else ()
    told = ("system_prompt",) if system else ()
    return Applied(rounds, system, tools, (*names, *masked, *told))


def _once(
    rounds: tuple[Round, ...], fault: Fault | None, repaired: list[str], params: Clean, unmarked: bool
) -> tuple[tuple[Round, ...], Drop | None]:
    """The rounds in front of the first fault; a Drop where none is left."""
    faults = [fault] if fault else []
    for switch, rule in RULES:
        if switch is None or getattr(params, switch):
            habit = (unmarked,) if rule is truncated_answer else ()
            while fault := rule(rounds, params, *habit):
                faults.append(fault)
                rounds = rounds[: fault.index]
                if not rounds:
                    return (), Drop(fault.reason, fault.evidence)
    for fault in faults:
        if params.faulty_round == "drop":
            return (), Drop(fault.reason, f"round {fault.index}: {fault.evidence}")
        repaired.append(f"cut_at_{fault.reason}")
    last = max((number for number, each in enumerate(rounds) if each.train), default=len(rounds) - 1)
    return rounds[: last + 1], None  # what is masked serves those behind it


def _repaired_rounds(rounds: tuple[Round, ...], repaired: list[str], params: Clean) -> tuple[Round, ...]:
    given = [text for each in rounds for text in each[:2]]
    texts = _repair(given, repaired, params)
    if texts == given:
        return rounds
    return tuple(
        Round(prompt, answer, *each[2:]) for each, prompt, answer in zip(rounds, texts[::2], texts[1::2], strict=True)
    )


def _system_first(messages: Sequence[Message]) -> tuple[str, tuple[Message, ...]]:
    """The system prompt, of all system turns in front of the first user's, and the other turns.

    Templates have a system turn at the beginning alone; a later one goes in front of the next prompt.
    """
    if not any(message.role == "system" for message in messages):
        return "", tuple(messages)
    system: list[str] = []
    waiting: list[str] = []
    others: list[Message] = []
    for message in messages:
        if message.role == "system":
            found = system if not any(other.role == "user" for other in others) else waiting
            found += [message.content.strip()] if message.content.strip() else []
        elif message.role == "user" and waiting and message.content.strip():
            others.append(Message("user", "\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            others.append(message)
    return "\n\n".join(system), tuple(others)


def _repair(texts: Sequence[str], repaired: list[str], params: Clean) -> list[str]:
    code = None  # whether a message so far is about code; asked where there is something to remove
    result = []
    for number, original in enumerate(texts):
        text = original
        if params.mojibake and not text.isascii() and MOJIBAKE.search(text) and (right := reread(text)):
            text = right
            repaired.append("encoding_repaired")
        if params.invisible_characters and (seen := visible(text)) != text:
            text = seen
            repaired.append("invisible_removed")
        if params.html_remnants and ("<" in text or "&" in text) and (plain := without_html(text)) != text:
            code = code or any(CODE.search(other) for other in texts[: number + 1])
            plain = without_entities(text, texts[: number + 1]) if code else plain
            if plain != text:
                text = plain
                repaired.append("html_removed")
        if (inner := text.strip()) != text:
            text = inner
            repaired.append("blanks_trimmed")
        if params.traditional == "convert" and traditional_share((text,)) >= TRADITIONAL:
            scripts = any(SCRIPTS.search(other) for other in texts)
            if not scripts and not KANA.search(text) and (simplified := _converter().convert(text)) != text:
                text = simplified
                repaired.append("traditional_converted")
        result.append(text)
    return result


@cache
def _converter():
    from opencc import OpenCC

    return OpenCC("t2s")


def whole_rounds(
    messages: Sequence[Message], repaired: list[str], params: Clean
) -> tuple[tuple[Round, ...], Fault | None]:
    """The whole rounds, and the fault behind them; no round and a fault if none is whole.

    Begins with the assistant, or ends on the user or on a tool's result: trimmed. An empty or doubled turn in between: a
    fault there. Tool calls and their results belong to the round of the question in front of them.
    """
    start, end = 0, len(messages)
    while start < end and (messages[start].role != "user" or not messages[start].content):
        start += 1
    while end > start and (messages[end - 1].role in ("user", "tool") or _is_empty(messages[end - 1])):
        end -= 1
    if start == end or not any(message.role == "assistant" for message in messages[start:end]):
        filled = {message.role for message in messages if message.content}
        reason = "no_messages" if not messages else "empty_answer" if "user" in filled else "empty_prompt"
        if len(filled) == 2:
            reason = "no_whole_round"
        return (), Fault(0, reason, " / ".join(f"{m.role}: {m.content[:60]}" for m in messages[:4]))
    if params.wrong_roles == "drop" and (start or end < len(messages)):
        reason = "begins_with_assistant" if start else "ends_on_user"
        return (), Fault(0, reason, messages[start - 1 if start else end].content[:160])
    rounds: list[Round] = []
    fault = None
    for turns in _by_question(messages[start:end]):
        found, fault = _round(turns, len(rounds))
        rounds += [found] if found else []
        if fault:
            break
    if start:
        repaired.append("leading_assistant_trimmed")
    if end < len(messages):
        repaired.append("trailing_user_trimmed")
    return tuple(rounds), fault


def _is_empty(message: Message) -> bool:
    return not message.content and not message.tool_calls


def _by_question(messages: Iterable[Message]) -> Iterable[list[Message]]:
    """The messages from each user's turn up to the next."""
    turns: list[Message] = []
    for message in messages:
        if message.role == "user" and turns:
            yield turns
            turns = []
        turns.append(message)
    yield turns


def _round(turns: list[Message], index: int) -> tuple[Round | None, Fault | None]:
    """The round of a user's turn and what follows it up to the next, and the fault in it or behind it."""
    question, *others = turns
    steps: list[Message] = []
    while others and (others[0].tool_calls or (others[0].role == "tool" and steps)):
        steps.append(others.pop(0))
    if steps and steps[-1].tool_calls and not others:  # the call is the answer
        called = [call["function"] for call in json.loads(steps[-1].tool_calls)]
        others = [Message("assistant", json.dumps(called, ensure_ascii=False), steps[-1].train)]
    if not others or others[0].role != "assistant":
        reason = "result_unanswered" if steps else "roles_not_alternating"
        return None, Fault(index, reason, turns[-1].content[:160])
    answer = others.pop(0)
    if not question.content or not answer.content:
        reason = "empty_answer" if question.content else "empty_prompt"
        return None, Fault(index, reason, (question.content or answer.content)[:160])
    found = Round(question.content, answer.content, answer.train, _steps(steps) if steps else "")
    behind = Fault(index + 1, "roles_not_alternating", others[0].content[:160]) if others else None
    return found, behind


def _steps(messages: Sequence[Message]) -> str:
    """Tool calls and results as JSON, in the form of the `messages` format."""
    return json.dumps(
        [
            {"role": message.role, "content": message.content}
            | ({"tool_calls": json.loads(message.tool_calls)} if message.tool_calls else {})
            for message in messages
        ],
        ensure_ascii=False,
    )
