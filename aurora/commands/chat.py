"""`aurora chat [MODEL]`: a conversation with a model folder, in the prompt in which it was trained."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aurora.core.errors import ParamsError, exit_with_message
from aurora.core.messages import PromptName
from aurora.core.params import read_section
from aurora.eval.prompt_set import question_encoder
from aurora.eval.replies import end_tokens
from aurora.model.quantization import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NEW = "/new"


class Conversation:
    """What was said so far, in tokens, and the model that answers."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        encode: Callable[[str, bool], list[int]],
        max_new_tokens: int,
    ) -> None:
        self.model, self.tokenizer, self.encode = model, tokenizer, encode
        self.max_new_tokens = max_new_tokens
        self.tokens: list[int] = []

    def answer(self, question: str, show: Callable[[str], None]) -> None:
        """Answers greedily; the pieces of the answer are shown as they come.

        Raises ParamsError where question and answer may outgrow the context; the conversation is then as before.
        """
        import torch

        asked = self.tokens + self.encode(question, not self.tokens)
        most = self.model.config.get_text_config().max_position_embeddings
        if len(asked) + self.max_new_tokens > most:
            raise ParamsError(
                f"{len(asked):,} tokens so far and {self.max_new_tokens:,} of an answer exceed the context of {most:,};"
                f" begin again by {NEW}, or lower --max-new-tokens"
            )
        ends = end_tokens(self.model, self.tokenizer)
        ids = torch.tensor([asked], device=self.model.device)  # (1, T)
        found = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=self.tokenizer.eos_token_id,
            streamer=_streamer(self.tokenizer, show),
        )[0, len(asked) :].tolist()
        reply = [token for token in found if token not in ends]
        self.tokens = [*asked, *reply, self.tokenizer.eos_token_id]


def _streamer(tokenizer: "PreTrainedTokenizerFast", show: Callable[[str], None]):
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        """Hands on text as soon as its characters are whole."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text + "\n" * stream_end)

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)


def questions() -> Iterator[str]:
    """Lines of standard input, asked for where it is a terminal."""
    asking = sys.stdin.isatty()
    while True:
        if asking:
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


@click.command()
@click.argument("model", type=click.Path(path_type=Path), default="models/merged")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@exit_with_message
def chat(model: Path, max_new_tokens: int) -> None:
    """Talk with MODEL, a folder (models/merged), one question a line; /new begins a new conversation.

    It is held in memory as `quantization` of params.yaml says, asked in the form of `format.prompt`, and answers
    greedily.
    """
    quantization = read_section("quantization", Quantization)
    form = read_section("format.prompt", PromptName)

    from aurora.model.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(model)
    loaded = load_model(model, quantization).eval()
    encode = question_encoder(tokenizer, form)

    def begin() -> Conversation:
        return Conversation(loaded, tokenizer, encode, max_new_tokens)

    conversation = begin()
    for question in questions():
        if question == NEW:
            conversation = begin()
            continue
        try:
            conversation.answer(question, lambda text: click.echo(text, nl=False))
        except ParamsError as error:
            if not sys.stdin.isatty():
                raise
            click.echo(f"error: {error}", err=True)
