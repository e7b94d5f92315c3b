"""Conversations as token ids: Mistral's v1 prompt, and a label for each token that is to be learnt.

Reference: mistral_common.tokens.tokenizers.instruct.InstructTokenizerV1. Each turn is encoded on its own, the user's
as `[INST] … [/INST]`; <s> and </s> are placed as ids. In v1 the marks [INST] and [/INST] are ordinary text, and so
may occur in content; the control ids 0, 1 and 2 never come out of text, whatever it holds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from aurora.core.errors import DataError, ModelError
from aurora.core.messages import Message, PromptName
from aurora.prompt.tokenizer import BOS, EOS

if TYPE_CHECKING:
    import pyarrow
    from sentencepiece import SentencePieceProcessor

IGNORED = -100  # label of a token that is not trained, as torch.nn.functional.cross_entropy has it
PROMPT_START, PROMPT_END = "[INST] ", " [/INST]"


def prompt_text(content: str) -> str:
    """The user's turn as the tokeniser reads it."""
    return f"{PROMPT_START}{content}{PROMPT_END}"


def with_system(system: str, content: str) -> str:
    """The first prompt of a conversation with a system prompt, for which Mistral's v1 template has no turn."""
    return f"{system}\n\n{content}" if system else content


def turn_texts(contents: "pyarrow.StringArray") -> list[bytes]:
    """Alternating turns, the user's first, as the tokeniser reads them, in UTF-8."""
    import pyarrow.compute

    users = pyarrow.array(numpy.arange(len(contents)) % 2 == 0)
    prompts = pyarrow.compute.binary_join_element_wise(PROMPT_START, contents, PROMPT_END, "")
    texts = pyarrow.compute.if_else(users, prompts, contents).cast(pyarrow.binary())
    return texts.to_numpy(zero_copy_only=False).tolist()


def encode_texts(
    processor: "SentencePieceProcessor", texts: list[str] | list[bytes], threads: int = 1
) -> list[numpy.ndarray]:
    """Token ids (int32) of each text, given as str or in UTF-8; no control token among them."""
    return processor.encode(texts, num_threads=threads, return_type="numpy") if texts else []


def encode_messages(
    processor: "SentencePieceProcessor", messages: Sequence[Message], place: str = "conversation"
) -> list[numpy.ndarray]:
    """Token ids of each turn of one conversation. Raises DataError, naming `place`, as `check_messages` does."""
    check_messages([(message.role, message.content) for message in messages], place)
    texts = [prompt_text(turn.content) if turn.role == "user" else turn.content for turn in messages]
    return encode_texts(processor, texts)


def join_rows(
    encoded: Sequence[numpy.ndarray],
    rounds: Sequence[int] | numpy.ndarray,
    prompt: PromptName,
    trained: numpy.ndarray | None = None,
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Rows laid end to end: ids (T,) int32, labels (T,) int32, and (R + 1,) int64 offsets of the R rows.

    `encoded` has prompt and answer by turns, and row r takes the next rounds[r] rounds of them. `trained`: bool of
    each of these rounds, whether its answer is trained; all are by default.
    """
    rounds = numpy.asarray(rounds, dtype=numpy.int64)
    texts = numpy.fromiter(map(len, encoded), dtype=numpy.int64, count=len(encoded))  # tokens of each
    ends = numpy.concatenate(([0], numpy.cumsum(rounds)))  # rounds before each row, and all
    bos = numpy.ones(len(texts) // 2, dtype=numpy.int64)  # <s> in front of each round
    if prompt == "mistral":
        bos[:] = 0
        bos[ends[:-1]] = 1
    lengths = bos + texts[::2] + texts[1::2] + 1  # tokens of each round, control tokens included
    starts = numpy.concatenate(([0], numpy.cumsum(lengths)))  # tokens before each round, and all
    ids = numpy.empty(starts[-1], dtype=numpy.int32)
    is_text = numpy.ones(len(ids), dtype=bool)
    places = starts[:-1][bos == 1], starts[1:] - 1
    for control, place in zip((BOS, EOS), places, strict=True):
        ids[place] = control
        is_text[place] = False
    ids[is_text] = numpy.concatenate([ids[:0], *encoded])  # of no rows too
    stretches = numpy.stack([bos + texts[::2], texts[1::2] + 1], axis=1).ravel()  # context, trained, context …
    answers = numpy.ones(len(bos), dtype=bool) if trained is None else trained
    is_trained = numpy.repeat(numpy.stack([numpy.zeros_like(answers), answers], axis=1).ravel(), stretches)
    return ids, numpy.where(is_trained, ids, numpy.int32(IGNORED)), starts[ends]


def encode(
    processor: "SentencePieceProcessor", messages: Sequence[Message], prompt: PromptName = "mistral"
) -> tuple[list[int], list[int]]:
    """Input ids and labels of one conversation, uncut."""
    encoded = encode_messages(processor, messages)
    ids, labels, _ = join_rows(encoded, [len(encoded) // 2], prompt)
    return ids.tolist(), labels.tolist()


def trained_spans(ids: Sequence[int] | numpy.ndarray, labels: Sequence[int] | numpy.ndarray) -> list[list[int]]:
    """Token ids of each trained stretch, its </s> included."""
    ids, labels = numpy.asarray(ids), numpy.asarray(labels)
    edges = numpy.flatnonzero(numpy.diff(numpy.concatenate(([0], labels != IGNORED, [0])).astype(numpy.int8)))
    return [ids[start:end].tolist() for start, end in zip(edges[::2], edges[1::2], strict=True)]


def as_decoded(content: str) -> str:
    """What the tokeniser gives back for `content`: U+2581, its own sign for a space, comes back as a space."""
    return content.replace("\u2581", " ")


def check_row(
    processor: "SentencePieceProcessor", ids: numpy.ndarray, labels: numpy.ndarray, answers: Sequence[str], place: str
) -> None:
    """Raises ModelError unless the trained spans decode to the answers, each with one </s> at its end."""
    spans = trained_spans(ids, labels)
    if len(spans) != len(answers):
        raise ModelError(f"{place}: {len(spans)} trained spans for {len(answers)} answers; this is a defect")
    for index, (span, answer) in enumerate(zip(spans, answers, strict=True)):
        decoded = processor.decode(span[:-1])
        if span[-1] != EOS or min(span[:-1]) <= EOS or decoded != as_decoded(answer):
            raise ModelError(
                f"{place}: the tokens trained in round {index} decode to {decoded[:40]!r}, but the answer is "
                f"{answer[:40]!r}; the tokeniser does not keep this text: drop the row or fetch the base again"
            )


def check_messages(turns: Sequence[tuple[str | None, str | None]], place: str) -> None:
    """Raises DataError unless (role, content) turns are whole rounds, user first, without an empty turn."""
    remedy = "run dvc repro clean"
    if not turns:
        raise DataError(f"{place}: an empty conversation; {remedy}")
    for index, (role, content) in enumerate(turns):
        if role not in ("user", "assistant"):
            raise DataError(f"{place}: unknown role {role!r} at turn {index}, known are user and assistant; {remedy}")
        if index and role == turns[index - 1][0]:
            raise DataError(f"{place}: two {role} turns in a row ({index - 1}, {index}); {remedy}")
        if index == 0 and role != "user":
            raise DataError(f"{place}: the first turn is of the assistant, not of the user; {remedy}")
        if not content:
            raise DataError(f"{place}: the {role} turn {index} is empty; {remedy}")
    if turns[-1][0] != "assistant":
        raise DataError(f"{place}: the last turn ({len(turns) - 1}) is of the user and has no answer; {remedy}")
