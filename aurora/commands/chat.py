"""`aurora chat [MODEL] [MODEL]`: a conversation in the terminal with one model, or with two side by side."""

import json
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aurora.core.errors import AuroraError, DataError, ParamsError, exit_with_message
from aurora.core.files import write_text
from aurora.core.messages import PromptName
from aurora.core.params import read_section
from aurora.model.quantization import Quantization
from aurora.serving.places import find_model

if TYPE_CHECKING:
    from aurora.serving.chat_model import ChatModel, Sampling

HISTORY = Path(".aurora/chat_history")
GAP = " │ "
NEAR = 3  # columns that a wide character and its neighbour may take
HELP = """\
/help                 this list
/system TEXT          begin again with a system message
/reset                begin again
/regenerate           answer the last message again
/save FILE            append the conversation to a JSON Lines file, in the `messages` format
/sampling             how tokens are chosen; NAME=VALUE changes it: temperature, top_p, seed, max_tokens
/exit                 end; so does Ctrl-D
Enter sends, Alt-Enter starts a new line, Ctrl-C ends an answer."""


@dataclass
class Conversation:
    """What was said so far with one model."""

    model: "ChatModel"
    messages: list[dict[str, str]] = field(default_factory=list)

    def begin(self, system: str | None = None) -> None:
        """Forgets all that was said. Raises DataError, and forgets nothing, for a system message that is too long."""
        opening = [{"role": "system", "content": system}] if system else []
        if opening:
            self.model.prompt([*opening, {"role": "user", "content": "?"}])
        self.messages = opening

    def answer(self, question: str, sampling: "Sampling") -> Generator[str]:
        """Pieces of the answer. Raises DataError for a question without a place; the conversation is then as before.

        Where the caller stops asking, what has come so far is the answer.
        """
        from aurora.serving.chat_model import Answer

        asked = [*self.messages, {"role": "user", "content": question}]
        ids = self.model.prompt(asked)
        return self._said(asked, Answer(len(ids)), lambda answer: self.model.answer(ids, sampling, answer))

    def _said(self, asked: list[dict], answer, pieces: Callable) -> Generator[str]:
        try:
            yield from pieces(answer)
        finally:
            if answer.text.strip():
                self.messages = [*asked, {"role": "assistant", "content": answer.text}]

    def take_back(self) -> str:
        """Removes the last round and returns its question. Raises DataError where nothing was answered."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise DataError("nothing was answered yet")
        question = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        return question


class Session:
    """One or two conversations that are asked the same questions."""

    def __init__(self, models: list["ChatModel"], sampling: "Sampling", show: Callable[[str], None]) -> None:
        self.conversations = [Conversation(model) for model in models]
        self.sampling, self.show = sampling, show

    def take(self, line: str) -> bool:
        """Does what a line says; False at the end. Raises DataError or ParamsError, and changes nothing, for a mistake."""
        if not line.startswith("/"):
            self.ask(line)
            return True
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/exit":
            return False
        actions = {
            "/help": lambda: self.show(f"{HELP}\n"),
            "/system": lambda: self.begin(rest),
            "/reset": lambda: self.begin(),
            "/regenerate": self.regenerate,
            "/save": lambda: self.save(rest),
            "/sampling": lambda: self.set_sampling(rest),
        }
        if command not in actions:
            raise ParamsError(f"{command}: no such command; /help lists them")
        actions[command]()
        return True

    def begin(self, system: str | None = None) -> None:
        """Begins all conversations again."""
        if system == "":
            raise ParamsError("/system: no text; give the system message behind it, or /reset")
        for conversation in self.conversations:
            conversation.begin(system)
        self.show("new conversation\n")

    def regenerate(self) -> None:
        """Answers the last question again; with a temperature, from another seed."""
        before = [list(conversation.messages) for conversation in self.conversations]
        questions = [conversation.take_back() for conversation in self.conversations]
        if self.sampling.temperature:
            self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        try:
            self.ask(questions[0])
        except DataError:
            for conversation, messages in zip(self.conversations, before, strict=True):
                conversation.messages = messages
            raise

    def save(self, name: str) -> None:
        """Appends each conversation as a line of the `messages` format. Raises ParamsError where it cannot be written."""
        if not name:
            raise ParamsError("/save: no file; give its name behind it")
        said = [conversation for conversation in self.conversations if conversation.messages]
        lines = [json.dumps({"messages": each.messages}, ensure_ascii=False) + "\n" for each in said]
        path = Path(name).expanduser()
        try:
            earlier = path.read_text(encoding="utf-8") if path.is_file() else ""
            write_text(path, earlier + "".join(lines))
        except (OSError, UnicodeDecodeError) as error:
            raise ParamsError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
        self.show(f"{len(lines)} appended to {path}\n")

    def set_sampling(self, text: str) -> None:
        """Shows the sampling, changed first by what NAME=VALUE says. Raises ParamsError for another name or value."""
        limits = {
            "temperature": (float, 0, 2),
            "top_p": (float, 1e-6, 1),
            "seed": (int, 0, 2**63 - 1),
            "max_tokens": (int, 1, 2**31),
        }
        changes: dict[str, Any] = {}
        for item in text.split():
            name, _, value = item.partition("=")
            if name not in limits:
                raise ParamsError(f"/sampling: {item}: give NAME=VALUE of {', '.join(limits)}")
            kind, low, high = limits[name]
            try:
                changes[name] = kind(value)
            except ValueError:
                changes[name] = low - 1
            if not low <= changes[name] <= high:
                raise ParamsError(f"/sampling: {name} must be a number from {low} to {high}, found {value!r}")
        self.sampling = replace(self.sampling, **changes)
        told = [
            f"{each.name}={getattr(self.sampling, each.name)}" for each in fields(self.sampling) if each.name in limits
        ]
        greedy = "" if self.sampling.temperature else " (greedy: temperature 0 takes the likeliest token)"
        self.show(f"{' '.join(told)}{greedy}\n")

    def ask(self, question: str) -> None:
        """Shows the answers as they come. Ctrl-C ends them, and keeps what has come."""
        answers = [conversation.answer(question, self.sampling) for conversation in self.conversations]
        try:
            if len(answers) == 1:
                for piece in answers[0]:
                    self.show(piece)
            else:
                names = [conversation.model.place.name for conversation in self.conversations]
                for line in side_by_side(names, answers, shutil.get_terminal_size().columns):
                    self.show(line)
        except KeyboardInterrupt:
            self.show(" [stopped]")
        finally:
            for answer in answers:
                answer.close()
        self.show("\n")


def side_by_side(names: list[str], answers: Sequence[Iterator[str]], width: int) -> Iterator[str]:
    """Lines of two texts in columns, each line as soon as it is whole in both; a token of each by turns."""
    room = max((width - len(GAP)) // 2, NEAR)
    texts, done = ["", ""], [False, False]
    yield row(names, room)
    shown = 0
    while True:
        for index, answer in enumerate(answers):
            piece = None if done[index] else next(answer, None)
            texts[index] += piece or ""
            done[index] = piece is None
        lines = [wrapped(text, room) for text in texts]
        # The last line of a text that still grows is not whole.
        whole = [len(of) if done[index] else len(of) - 1 for index, of in enumerate(lines)]
        ready = max(whole) if all(done) else min(whole[index] for index in (0, 1) if not done[index])
        for number in range(shown, ready):
            yield row([of[number] if number < len(of) else "" for of in lines], room)
        shown = max(shown, ready)
        if all(done):
            return


def row(cells: list[str], room: int) -> str:
    """A line of cells, each filled up to `room` columns of the terminal."""
    from prompt_toolkit.utils import get_cwidth

    first, second = cells
    return f"{first}{' ' * (room - get_cwidth(first))}{GAP}{second}".rstrip() + "\n"


def wrapped(text: str, room: int) -> list[str]:
    """The text in lines of at most `room` columns; a Chinese character takes two."""
    from prompt_toolkit.utils import get_cwidth

    lines = []
    for paragraph in text.split("\n"):
        line, taken = "", 0
        for character in printable(paragraph):
            width = get_cwidth(character)
            if taken + width > room:
                lines.append(line)
                line, taken = "", 0
            line, taken = line + character, taken + width
        lines.append(line)
    return lines


def printable(text: str) -> str:
    """Without control characters, which a terminal would obey; new lines and tabs stay."""
    return "".join(
        character for character in text if character in "\n\t" or character.isprintable() or character == "\u3000"
    )


def piped_lines() -> Iterator[str | AuroraError]:
    """Lines of standard input; an error in the place of one that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            yield DataError(f"line {number} of the input is not UTF-8 ({error.reason}); it is left out")
            continue
        if text:
            yield text


def typed_lines() -> Iterator[str]:
    """Messages typed at the terminal: history with the arrows and Ctrl-R, Alt-Enter for a new line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    HISTORY.parent.mkdir(parents=True, exist_ok=True)
    session = PromptSession(history=FileHistory(str(HISTORY)), multiline=True, key_bindings=keys)
    while True:
        try:
            text = session.prompt("> ", prompt_continuation="  ").strip()
        except KeyboardInterrupt:  # empties the line
            continue
        except EOFError:
            return
        if text:
            yield text


def show(text: str) -> None:
    """Writes to standard output at once, without control characters."""
    click.echo(printable(text), nl=False)
    sys.stdout.flush()


def converse(session: Session, lines: Iterator[str | AuroraError]) -> bool:
    """Takes lines until their end; whether each was taken. A mistake gets one line, and the rest goes on."""
    sound = True
    for line in lines:
        try:
            if isinstance(line, AuroraError):
                raise line
            if not session.take(line):
                break
        except AuroraError as error:
            sound = False
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
    return sound


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL] [MODEL]")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Of an answer.")
@exit_with_message
def chat(models: tuple[str, ...], max_new_tokens: int) -> None:
    """Talk with MODEL, or with two side by side; /help lists the commands.

    A MODEL is base, tuned (the default), adapter, step-STEP (a kept adapter), checkpoint-STEP of an unfinished
    training, or a folder. It is held in memory as `quantization` of params.yaml says, an adapter on its base without
    a merge, and asked in the prompt `format.prompt`. Answers are greedy until /sampling gives a temperature. Where
    standard input is no terminal, each line is a message.
    """
    if len(models) > 2:
        raise ParamsError(f"{len(models)} models; give one, or two to see them side by side")
    places = [find_model(name) for name in models or ("tuned",)]
    quantization = read_section("quantization", Quantization)
    form = read_section("format.prompt", PromptName)

    from aurora.serving.chat_model import ChatModel, Sampling

    loaded = [ChatModel.load(place, quantization, form) for place in places]
    session = Session(loaded, Sampling(max_tokens=max_new_tokens), show)
    if sys.stdin.isatty():
        names = " and ".join(place.name for place in places)
        click.echo(f"{names}: greedy answers of up to {max_new_tokens} tokens; /help lists the commands", err=True)
        converse(session, typed_lines())
    elif not converse(session, piped_lines()):
        sys.exit(1)
