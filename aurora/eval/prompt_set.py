"""A fixed set of prompts by kind, which every model is given, and its greedy replies round by round."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import DataError
from aurora.core.language import language
from aurora.core.messages import PromptName
from aurora.eval.chat_encoder import ChatEncoder
from aurora.eval.replies import Prompt, end_tokens, greedy_tokens, reply_metrics

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from aurora.eval.params import Replies
    from aurora.eval.resume_cache import ResumeCache


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What the user says, round by round."""

    kind: str
    number: int  # place within its kind, from 1
    turns: tuple[str, ...]


def read_prompt_set(path: Path) -> list[Dialogue]:
    """Dialogues of a YAML file that maps each kind to a list of prompts, a list of texts being several rounds.

    Raises DataError for a missing file, another shape, or an empty text.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; restore it by: git checkout {path}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not YAML ({error}); correct it") from None
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected kinds such as 'code:', each with a list of prompts; correct it")
    dialogues = []
    for kind, prompts in content.items():
        if not isinstance(prompts, list) or not prompts:
            raise DataError(f"{path}: {kind}: expected a list of prompts, found {prompts!r}; correct it")
        for number, prompt in enumerate(prompts, start=1):
            turns = tuple(prompt) if isinstance(prompt, list) else (prompt,)
            faulty = [turn for turn in turns if not isinstance(turn, str) or not turn.strip()]
            if not turns or faulty:
                found = faulty[0] if faulty else prompt
                raise DataError(f"{path}: {kind}, prompt {number}: {found!r} is no text; correct it")
            dialogues.append(Dialogue(str(kind), number, turns))
    return dialogues


def answer_prompt_set(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    dialogues: list[Dialogue],
    form: PromptName,
    params: "Replies",
    max_length: int,
    memory: "ResumeCache | None" = None,
) -> tuple[dict, "pyarrow.Table"]:
    """Metrics over all replies and by kind, and a table of kind, number, round, prompt, reply and language.

    `form` is the prompt in which the model was trained. Raises DataError for a dialogue that may outgrow the context.
    """
    import pyarrow

    history = {dialogue: [] for dialogue in dialogues}  # tokens so far, of all rounds
    replies: dict[tuple[Dialogue, int], str] = {}
    encode = ChatEncoder(tokenizer, form).question
    encoded = {
        dialogue: [encode(text, number == 0) for number, text in enumerate(dialogue.turns)] for dialogue in dialogues
    }
    for dialogue, asked in encoded.items():
        longest = sum(map(len, asked)) + len(asked) * (params.max_new_tokens + 1)
        if longest > max_length:
            raise DataError(
                f"{dialogue.kind}, prompt {dialogue.number}: up to {longest:,} tokens with its replies, but the context "
                f"has {max_length:,}; shorten it, or lower eval.replies.max_new_tokens"
            )
    for turn in range(max(len(dialogue.turns) for dialogue in dialogues)):
        asked = [dialogue for dialogue in dialogues if turn < len(dialogue.turns)]
        for dialogue in asked:
            history[dialogue] += encoded[dialogue][turn]
        prompts = [
            Prompt(f"{dialogue.kind} {dialogue.number}", dialogue.turns[turn], list(history[dialogue]))
            for dialogue in asked
        ]
        found = greedy_tokens(
            model, prompts, params.max_new_tokens, params.batch_size, end_tokens(model, tokenizer), memory
        )
        for dialogue, tokens in zip(asked, found, strict=True):
            history[dialogue] += [*tokens, tokenizer.eos_token_id]
            replies[dialogue, turn] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    rows = [
        (dialogue.kind, dialogue.number, turn + 1, text, replies[dialogue, turn])
        for dialogue in dialogues
        for turn, text in enumerate(dialogue.turns)
    ]
    columns = dict(zip(("kind", "number", "round", "prompt", "reply"), map(list, zip(*rows, strict=True)), strict=True))
    columns["language"] = [language(reply) for reply in columns["reply"]]
    kinds: dict[str, list[str]] = {}
    for kind, *_, reply in rows:
        kinds.setdefault(kind, []).append(reply)
    metrics = _counted(columns["reply"]) | {"kinds": {kind: _counted(members) for kind, members in kinds.items()}}
    return metrics, pyarrow.table(columns)


def _counted(replies: list[str]) -> dict:
    return reply_metrics(replies) | {"n": len(replies)}
