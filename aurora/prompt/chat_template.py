"""Conversations in the base's own Hugging Face chat template, as token ids with exact assistant spans.

A template does not say which part of its text is an answer. So conversations of marks are rendered, and the text between
the marks gives the fixed parts. A template that renders one round differently from the next, or fewer turns differently
from the beginning of more, is refused; and every row is rendered once more with
its own contents, which must give the parts and the contents and nothing else. Content is encoded with special tokens
switched off, so that it never becomes one.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy

from aurora.core.errors import ModelError
from aurora.prompt.mistral import IGNORED, trained_spans, with_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REMEDY = "give a base whose template does not, or its chat_template in another form"
MARKS = [f"{role}mark{number}" for number in range(3) for role in ("question", "answer")]
# Of the parts against the whole: no white space at an end, where a template's own may join it to one token.
PROBE = ("你好，what is 2+2?", "It is 4；是四。", "再问 one more", "Fine, 好的")


SYSTEM_MARK = "systemmark"
TOOL_PROBE = [
    {
        "type": "function",
        "function": {"name": "toolmark", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
]
CALL_PROBE = [
    {"role": "user", "content": "q"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "callmark", "arguments": {}}}],
    },
    {"role": "tool", "content": "resultmark"},
    {"role": "assistant", "content": "a"},
]  # fmt: skip


class ToolRounds(NamedTuple):
    """Token ids of a conversation with tool calls, by round."""

    openings: list[numpy.ndarray]  # of each prompt, where it begins a row
    answers: list[tuple[numpy.ndarray, numpy.ndarray]]  # ids up to the end token, and bool: which are trained


@dataclass(frozen=True)
class Parts:
    """The fixed text of a template."""

    first: str  # in front of the first question
    between: str  # behind a question, up to its answer
    after: str  # behind an answer, up to the next question
    last: str  # behind the last answer

    def text(self, contents: Sequence[str]) -> str:
        """A whole conversation, or one that ends on a question and is ready to be answered."""
        text = self.first
        for index, content in enumerate(contents):
            final = self.last if index == len(contents) - 1 else self.after
            text += content + (final if index % 2 else self.between)
        return text


class ChatTemplate:
    """A tokeniser's chat template, taken apart into token ids. Raises ModelError for one that has no exact spans."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", place: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer, self.place = tokenizer, place
        whole = getattr(tokenizer, "backend_tokenizer", None)
        if whole is None:
            raise ModelError(f"{place}: its tokeniser has no tokenizer.json, which chat_template needs")
        self.whole: Tokenizer = whole
        self.plain = Tokenizer.from_str(self.whole.to_str())  # every text is content to it
        self.plain.encode_special_tokens = True
        added = self.whole.get_added_tokens_decoder()
        self.special = {index for index, token in added.items() if token.special}
        names: list[str] = sorted((added[index].content for index in self.special), key=len, reverse=True)
        self.mark = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self.parts = self._take_apart()
        self._cut_parts()
        self._prove()

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate":
        """That of a model folder."""
        from transformers import AutoTokenizer

        if not Path(folder).is_dir():  # transformers would ask the hub for a model of this name
            raise ModelError(f"{folder}: no such folder; fetch the base first")
        try:
            return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True), str(folder))
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise ModelError(f"{folder}: no tokeniser that loads ({reason}); fetch the base again") from None

    def render(self, contents: Sequence[str], system: str = "") -> str:
        """What the template writes for alternating turns, the user's first; ready to be answered after a question."""
        roles = ("user", "assistant")
        turns = [{"role": roles[index % 2], "content": text} for index, text in enumerate(contents)]
        if system:
            turns.insert(0, {"role": "system", "content": system})
        return self._render(turns, bool(len(contents) % 2))

    def _render(self, turns: Sequence[dict], ask: bool, tools: list[dict] | None = None) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(turns), tools=tools, tokenize=False, add_generation_prompt=ask
            )
        except (TemplateError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise ModelError(f"{self.place}: chat_template cannot be rendered ({reason}); {REMEDY}") from None

    def _refuse(self, what: str) -> ModelError:
        return ModelError(f"{self.place}: chat_template {what}, so that no answer's span is exact; {REMEDY}")

    def _take_apart(self) -> Parts:
        source = self.tokenizer.chat_template
        if not isinstance(source, str):
            raise ModelError(
                f"{self.place}: has {'several templates' if source else 'no chat_template'}; give one, or another format.prompt"
            )
        if "strftime_now" in source:
            raise self._refuse("writes today's date, and other bytes tomorrow")
        text, found = self.render(MARKS), []
        for mark in MARKS:
            if text.count(mark) != 1:
                raise self._refuse(f"writes a turn {text.count(mark)} times")
            part, _, text = text.partition(mark)
            found.append(part)
        first, between, after = found[:3]
        parts = Parts(first, between, after, text)
        if found[3::2] != [between] * 2 or found[4] != after:
            raise self._refuse("renders one round differently from the next")
        for count in range(1, len(MARKS)):
            if self.render(MARKS[:count]) != parts.text(MARKS[:count]):
                raise self._refuse(f"writes {count} turns differently from the beginning of more")
        if not after.startswith(text):
            raise self._refuse("ends a conversation differently from a turn")
        return parts

    @cached_property
    def system_parts(self) -> tuple[str, str] | None:
        """The fixed text in front of a system prompt, and between it and the first question; None without its own turn."""
        try:
            text = self.render(MARKS, SYSTEM_MARK)
        except ModelError:
            return None
        before, *rest = text.split(SYSTEM_MARK)
        between = rest[0].partition(MARKS[0])[0] if len(rest) == 1 else ""
        expected = before + SYSTEM_MARK + between + self.parts.text(MARKS)[len(self.parts.first) :]
        return (before, between) if text == expected else None

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template writes functions, calls and results."""
        try:
            text = self._render(CALL_PROBE, False, TOOL_PROBE)
        except ModelError:
            return False
        return all(mark in text for mark in ("toolmark", "callmark", "resultmark"))

    def _cut_parts(self) -> None:
        """Cuts the parts at special tokens: fixed ids, and the text that is encoded together with a content."""
        parts = self.parts
        fixed, self.opening_text = self._from_last(parts.first)
        self.first = self._whole_ids(fixed)
        cut = self.mark.search(parts.between)
        self.behind_question = parts.between[: cut.start()] if cut else parts.between
        self.between = self._whole_ids(parts.between[len(self.behind_question) :])
        cut = self.mark.search(parts.after)
        if not cut or not parts.last.startswith(parts.after[: cut.end()]):
            raise self._refuse("ends an answer without a special token")
        if cut[0] != self.tokenizer.eos_token:
            raise ModelError(
                f"{self.place}: chat_template ends an answer by {cut[0]}, but eos_token is {self.tokenizer.eos_token}, at "
                "which replies stop; set it in tokenizer_config.json"
            )
        self.behind_answer, self.end = parts.after[: cut.start()], self.whole.token_to_id(cut[0])
        fixed, self.following_text = self._from_last(parts.after[cut.end() :])
        self.after, self.last = self._whole_ids(fixed), self._whole_ids(parts.last[cut.end() :])

    def _from_last(self, text: str) -> tuple[str, str]:
        ends = [found.end() for found in self.mark.finditer(text)]
        return text[: ends[-1] if ends else 0], text[ends[-1] if ends else 0 :]

    def _prove(self) -> None:
        """Raises ModelError where the parts give other ids than the tokeniser gives to the whole."""
        for count in (2, 4):
            for system in ("", "简短 reply"):
                opening, rendered = self.opening(PROBE[0], system), self._with_system(PROBE[:count], system)
                ids, _, _ = self.join([opening, *self.turns(PROBE[:count])[1:]], [count // 2])
                if ids.tolist() == self._whole_ids(rendered).tolist():
                    continue
                raise ModelError(
                    f"{self.place}: its tokeniser gives a conversation in parts other ids than the whole; its "
                    "chat_template has no exact spans: take format.prompt: mistral, or another base"
                )

    def _whole_ids(self, text: str) -> numpy.ndarray:
        """Ids of a text in which special tokens are special."""
        return numpy.array(self.whole.encode(text, add_special_tokens=False).ids, dtype=numpy.int32)

    def _with_system(self, contents: Sequence[str], system: str) -> str:
        """What the template writes for a conversation with a system prompt, which goes to the first question without a turn
        of its own."""
        if system and not self.system_parts:
            contents, system = [with_system(system, contents[0]), *contents[1:]], ""
        return self.render(contents, system)

    def _encode(self, texts: Sequence[str]) -> list[numpy.ndarray]:
        found = self.plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [numpy.array(each.ids, dtype=numpy.int32) for each in found]

    def questions(self, texts: Sequence[str], opening: bool = False) -> list[numpy.ndarray]:
        """Ids of questions, the fixed ones before them apart; `opening`: as the first of a row."""
        before = self.opening_text if opening else self.following_text
        found = self._encode([f"{before}{text}{self.behind_question}" for text in texts])
        return [numpy.concatenate([ids, self.between]) for ids in found]

    def answers(self, texts: Sequence[str]) -> list[numpy.ndarray]:
        """Ids of answers, without the token that ends them."""
        return self._encode([text + self.behind_answer for text in texts])

    def turns(self, texts: Sequence[str]) -> list[numpy.ndarray]:
        """Ids of alternating turns, as they follow another round."""
        pairs = zip(self.questions(texts[::2]), self.answers(texts[1::2]), strict=True)
        return [ids for pair in pairs for ids in pair]

    def openings(self, texts: Sequence[str], behind: Sequence[numpy.ndarray]) -> list[numpy.ndarray]:
        """All ids in front of the answer to a first question; `behind` are those of the questions behind a round."""
        same = self.opening_text == self.following_text
        found = behind if same else self.questions(texts, opening=True)
        return [numpy.concatenate([self.first, ids]) for ids in found]

    def opening(self, content: str, system: str = "") -> numpy.ndarray:
        """The same of one question, behind a system prompt where there is one."""
        if not system or not self.system_parts:
            content = with_system(system, content)
            return numpy.concatenate([self.first, self.questions([content], opening=True)[0]])
        before, between = self.system_parts
        pieces: list[numpy.ndarray] = []
        run = ""  # text between special tokens, of the template and of contents
        for fixed, own in ((before, system), (between, content), (self.behind_question, "")):
            start = 0
            for found in self.mark.finditer(fixed):
                pieces += [self._encode([run + fixed[start : found.start()]])[0], self._whole_ids(found[0])]
                run, start = "", found.end()
            run += fixed[start:] + own
        return numpy.concatenate([*pieces, self._encode([run])[0], self.between])

    def prompt(self, text: str, opening: bool, system: str = "") -> list[int]:
        """What the model reads before it answers: all of a first question, or what follows an answer's end token."""
        if opening:
            return self.opening(text, system).tolist()
        return [*self.after.tolist(), *self.questions([text])[0].tolist()]

    def tool_rounds(self, rounds: Sequence[tuple], system: str, tools: str) -> ToolRounds | None:
        """Ids of rounds (prompt, answer, trained, steps) with tool calls: calls are trained, results are not.

        None where the template has no tools, a text holds a special token, or no exact span can be found: the
        conversation rendered whole must give the same ids.
        """
        texts = [text for prompt, answer, _, steps in rounds for text in (prompt, answer, steps)]
        if not self.knows_tools or any(self.mark.search(text) for text in (*texts, system, tools)):
            return None
        functions = json.loads(tools) if tools else None
        head = [{"role": "system", "content": system}] if system else []
        turns, openings, answers, text = list(head), [], [], ""
        for prompt, answer, trained, steps in rounds:
            question = {"role": "user", "content": prompt}
            openings.append(self._whole_ids(self._render([*head, question], True, functions)))
            turns.append(question)
            parts: list[tuple[str, bool]] = []
            said = json.loads(steps) if steps else []
            if not said or said[-1]["role"] != "assistant":  # else a call is the answer
                said.append({"role": "assistant", "content": answer})
            for turn in said:
                if turn["role"] == "assistant":
                    before = self._render(turns, True, functions)
                    after = self._render([*turns, turn], False, functions)
                    end = after.rfind(self.tokenizer.eos_token) + len(self.tokenizer.eos_token)
                    if not before.startswith(text) or not after.startswith(before) or end <= len(before):
                        return None
                    parts += [(before[len(text) :], False), (after[len(before) : end], trained)]
                    text = after[:end]
                turns.append(turn)
            ids = [self._whole_ids(part) for part, _ in parts[1:]]
            ids[-1] = ids[-1][:-1]  # the end token, which `join` places
            learnt = numpy.repeat([learns for _, learns in parts[1:]], [len(part) for part in ids])
            answers.append((numpy.concatenate(ids), learnt))
        questions = [openings[0], *self.questions([prompt for prompt, *_ in rounds[1:]])]
        encoded = [ids for pair in zip(questions, (ids for ids, _ in answers), strict=True) for ids in pair]
        whole = self._whole_ids(self._render(turns, False, functions))
        return (
            ToolRounds(openings, answers) if self.join(encoded, [len(rounds)])[0].tolist() == whole.tolist() else None
        )

    def join(
        self,
        encoded: Sequence[numpy.ndarray],
        rounds: Sequence[int],
        trained: Sequence[bool] | numpy.ndarray | None = None,
    ) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
        """Rows laid end to end, as aurora.prompt.mistral.join_rows has them.

        At the place of a question that begins a row, `encoded` has its ids there, as `openings` gives them.
        """
        end, parts, learnt, ends, turn = numpy.array([self.end], dtype=numpy.int32), [], [], [0], 0
        nothing = end[:0]
        for count in rounds:
            start = len(parts)
            for number in range(count):
                learns = trained is None or bool(trained[turn // 2])
                parts += [self.after if number else nothing, encoded[turn], encoded[turn + 1], end]
                learnt += [False, False, learns, learns]
                turn += 2
            parts.append(self.last)
            learnt.append(False)
            ends.append(ends[-1] + sum(map(len, parts[start:])))
        ids = numpy.concatenate([nothing, *parts])
        is_trained = numpy.repeat(numpy.array(learnt, dtype=bool), [len(part) for part in parts])
        labels = numpy.where(is_trained, ids, numpy.int32(IGNORED))
        return ids, labels, numpy.array(ends, dtype=numpy.int64)

    @cached_property
    def control(self) -> numpy.ndarray:
        """(V,) bool: whether an id is a special token."""
        table = numpy.zeros(self.whole.get_vocab_size(), dtype=bool)
        table[list(self.special)] = True
        return table

    def check(
        self, ids: numpy.ndarray, labels: numpy.ndarray, contents: Sequence[str], decode: bool, place: str,
        system: str = "", trained: Sequence[bool] | numpy.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Raises ModelError where a row is not what the template writes for its contents, or its spans no answers."""
        if system and not self.system_parts:
            contents, system = [with_system(system, contents[0]), *contents[1:]], ""
        before, between = (self.system_parts if system else None) or (self.parts.first, "")
        expected = before + system + between + self.parts.text(contents)[len(self.parts.first) :]
        if self.render(contents, system) != expected:
            raise ModelError(f"{place}: chat_template changes the text of this conversation; drop the row, or {REMEDY}")
        if not decode:
            return
        answers = [
            f"{answer}{self.behind_answer}"
            for index, answer in enumerate(contents[1::2])
            if trained is None or trained[index]
        ]
        spans = trained_spans(ids, labels)
        if len(spans) != len(answers):
            raise ModelError(f"{place}: {len(spans)} trained spans for {len(answers)} answers; this is a defect")
        for index, (span, answer) in enumerate(zip(spans, answers, strict=True)):
            decoded = self.plain.decode(span[:-1], skip_special_tokens=False)
            if span[-1] != self.end or decoded not in (answer, self._normalised(answer)):
                raise ModelError(
                    f"{place}: the tokens trained in round {index} decode to {decoded[:40]!r}, but the answer is "
                    f"{answer[:40]!r}; the tokeniser does not keep this text: drop the row or fetch the base again"
                )

    def _normalised(self, text: str) -> str:
        return self.plain.normalizer.normalize_str(text) if self.plain.normalizer else text
