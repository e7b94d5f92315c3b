"""A loaded model that answers a chat token by token, several chats at a time."""

import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aurora.core.errors import DataError
from aurora.core.messages import PromptName
from aurora.eval.replies import end_tokens
from aurora.model.quantization import Quantization
from aurora.serving.encoding import Messages, message_encoder
from aurora.serving.places import ModelPlace

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

UNFINISHED = "\ufffd"  # what a tokeniser decodes from part of a character


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: the likeliest, unless `temperature` is above 0."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 1024
    """Tokens of an answer at most; never more than the context has left."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends; they are not part of it."""


@dataclass
class Answer:
    """An answer as it grows."""

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "length"  # or "stop", for an end token or a stop text


class ContextError(DataError):
    """A chat has more tokens than the model's context."""


class ChatModel:
    """A model, its tokeniser and its prompt. Chats may be answered from several threads; they take turns by token."""

    def __init__(
        self, place: ModelPlace, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", form: PromptName
    ) -> None:
        self.place, self.model, self.tokenizer = place, model, tokenizer
        self.encode = message_encoder(tokenizer, form)
        self.context = model.config.get_text_config().max_position_embeddings
        self.ends = end_tokens(model, tokenizer)
        self._turn = threading.Lock()

    @classmethod
    def load(cls, place: ModelPlace, quantization: Quantization, form: PromptName) -> "ChatModel":
        """Loads a model as `quantization` says, an adapter on its base without a merge.

        Raises ModelError for a folder that does not load, ResourceError for too little memory.
        """
        from aurora.model.loading import load_model, load_tokenizer

        tokenizer = load_tokenizer(place.model)
        model = load_model(place.model, quantization)
        if place.base is not None:
            from aurora.lora.attach import load_adapter
            from aurora.model.folder import meta_model

            model = load_adapter(model, meta_model(place.base), place.folder).eval()
        return cls(place, model, tokenizer, form)

    def prompt(self, messages: Messages) -> list[int]:
        """The ids of a chat. Raises DataError for messages without a place in the prompt, ContextError for too many."""
        ids = self.encode(messages)
        if len(ids) >= self.context:
            raise ContextError(
                f"the chat has {len(ids):,} tokens, and the context of this model {self.context:,}; shorten it"
            )
        return ids

    def answer(self, ids: Sequence[int], sampling: Sampling, answer: Answer) -> Generator[str]:
        """Pieces of the answer to a prompt, each of whole characters; `answer` holds what has come so far.

        A caller that stops asking ends the work: nothing is computed ahead.
        """
        choose = _Chooser(sampling, self.model.device)
        shown = 0
        most = min(sampling.max_tokens, self.context - len(ids))
        for token in self._tokens(ids, choose, most):
            if token in self.ends:
                answer.finish_reason = "stop"
                break
            answer.tokens.append(token)
            text, stopped = _cut(self._decode(answer.tokens), sampling.stop)
            if stopped:
                answer.text, answer.finish_reason = text, "stop"
                yield text[shown:]
                return
            ready = len(text) - _held_back(text, sampling.stop)
            if ready > shown:
                answer.text = text[:ready]
                yield text[shown:ready]
                shown = ready
        answer.text = self._decode(answer.tokens)
        if answer.text[shown:]:
            yield answer.text[shown:]

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _tokens(self, ids: Sequence[int], choose: "_Chooser", most: int) -> Iterator[int]:
        import torch
        from transformers import DynamicCache

        from aurora.eval.reply_cache import reply_cache

        cache = reply_cache(self.model, DynamicCache(config=self.model.config.get_text_config()))
        seen, new = list(ids), list(ids)
        for _ in range(most):
            with self._turn, torch.inference_mode():
                output = self.model(
                    input_ids=torch.tensor([new], device=self.model.device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                token = choose(seen, output.logits[:, -1])
            yield token
            seen.append(token)
            new = [token]


class _Chooser:
    """Chooses a token from logits (1, V) by transformers' own warpers, with a generator of its own."""

    def __init__(self, sampling: Sampling, device: "torch.device") -> None:
        self.greedy, self.device = sampling.temperature == 0, device
        if not self.greedy:
            import torch

            self.warpers = _warpers(sampling)
            self.generator = torch.Generator(device=device).manual_seed(sampling.seed)

    def __call__(self, seen: list[int], logits: "torch.Tensor") -> int:
        import torch

        if self.greedy:
            return int(logits.argmax(dim=-1))
        scores = self.warpers(torch.tensor([seen], device=self.device), logits.float())
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator))


def _warpers(sampling: Sampling) -> "LogitsProcessorList":
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    found = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    return found


def _cut(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text up to the first of the stop texts in it, and whether there is one."""
    places = [place for mark in stop if (place := text.find(mark)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _held_back(text: str, stop: tuple[str, ...]) -> int:
    """Characters at the end that further tokens may change: part of a character, or the beginning of a stop text."""
    unfinished = len(text) - len(text.rstrip(UNFINISHED))
    begun = [size for mark in stop for size in range(1, len(mark)) if text.endswith(mark[:size])]
    return max([unfinished, *begun])
