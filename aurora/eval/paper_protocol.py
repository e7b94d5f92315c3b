"""The paper's own multiple choice: shots as turns of a chat, drawn anew for each question, and four letters' logits.

Reference: src/llmtuner/eval of github.com/WangRongsheng/Aurora at b7c78852. It reads files by pandas, which turns options
such as `None` into `nan`; here they stay as they are written. It draws shots by an unseeded shuffle; here a seed, the
subject and the question's place decide, whatever else is asked.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy

from aurora.benchmarks.read import LETTERS
from aurora.core.errors import DataError
from aurora.core.messages import PromptName
from aurora.eval.benchmarks import Subject
from aurora.eval.chat_encoder import ChatEncoder
from aurora.eval.params import Benchmark

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerFast

    from aurora.eval.params import Eval
    from aurora.eval.prefix import PrefixLM


@dataclass(frozen=True, slots=True)
class Wording:
    """The texts around a question."""

    system: str  # in front of the first shot
    answer: str  # behind the options
    prefix: str  # in front of a letter, whose last token is the answer's


WORDINGS = {
    "en": Wording("The following are multiple choice questions (with answers) about {title}.\n\n", "\nAnswer: ", " "),
    "zh": Wording("以下是中国关于{title}考试的单项选择题，请选出其中的正确答案。\n\n", "\n答案：", "\n"),
}
HEADLESS = 1  # rows of each MMLU file that the repository's loader takes for a header
OTHER_CATEGORY = {"mmlu_anatomy": "mmlu_other"}  # where its grouping is not that of lm-eval


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its answer, as the protocol words it."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt with its question's place in the file, from 0, and right answer."""

    subject: str
    number: int
    turns: list[str]  # alternating, the user's first; the last is the question
    target: str


def subject_prompts(
    benchmark: str, subject: Subject, language: Literal["en", "zh"], num_fewshot: int, seed: int
) -> Iterator[Asked]:
    """The prompt of each question of a subject; MMLU's files lose their first row, of shots as well."""
    from aurora.eval.tasks import subject_title

    wording = WORDINGS[language]
    skipped = HEADLESS if benchmark == "mmlu" else 0
    shots = [item_of(document, wording) for document in subject.shots[skipped:]]
    system = wording.system.format(title=subject_title(benchmark, subject.name))
    for number, document in enumerate(subject.questions[skipped:], start=skipped):
        draw = random.Random(f"{seed} {benchmark} {subject.name} {number}")
        chosen = draw.sample(shots, min(num_fewshot, len(shots)))
        item = item_of(document, wording)
        turns = [part for shot in chosen for part in (shot.text, shot.answer)]
        turns.append(item.text)
        turns[0] = system + turns[0]
        turns[-1] = turns[-1].strip()  # the question alone: shots keep the space behind "Answer:"
        yield Asked(subject.name, number, turns, item.answer)


def item_of(document: dict, wording: Wording) -> Item:
    """A document of any of the three benchmarks in this wording."""
    question = document.get("question", document.get("Question"))
    if "choices" in document:  # MMLU
        options, answer = document["choices"], LETTERS[document["answer"]]
    else:
        options = [document[letter] for letter in LETTERS]
        answer = document.get("answer", document.get("Answer"))
    lines = [f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return Item("".join([question, *lines, wording.answer]), answer)


def score_paper_protocol(
    lm: "PrefixLM", subjects: dict[Benchmark, list[Subject]], params: "Eval", form: PromptName
) -> tuple[dict, "pyarrow.Table"]:
    """Scores by benchmark and language of the prompt, such as `cmmlu_en`, and one row for each question.

    A score is {acc, stderr, n, too_long, categories}, averages being over questions; the table has the columns of
    questions.parquet. Raises DataError if there is no question.
    """
    import pyarrow

    encoder = ChatEncoder(lm.tokenizer, form)
    results, tables = {}, []
    for benchmark, members in subjects.items():
        for language in params.paper_protocol.prompts.get(benchmark, ()):
            shots = params.tasks[benchmark].num_fewshot
            asked = [
                prompt
                for subject in members
                for prompt in subject_prompts(benchmark, subject, language, shots, params.paper_protocol.seed)
            ]
            if asked:
                letters = letter_tokens(lm.tokenizer, WORDINGS[language].prefix)
                table = _table(f"{benchmark}_{language}", asked, *_answers(lm, encoder, asked, letters))
                results[f"{benchmark}_{language}"] = _scores(benchmark, table)
                tables.append(table)
    if not tables:
        raise DataError(
            "eval.paper_protocol.prompts leaves no question of eval.tasks; name a benchmark of them there, or raise its limit"
        )
    return results, pyarrow.concat_tables(tables)


def letter_tokens(tokenizer: "PreTrainedTokenizerFast", prefix: str) -> list[int]:
    """The last token of prefix + letter for A, B, C and D."""
    return [tokenizer.encode(prefix + letter, add_special_tokens=False)[-1] for letter in LETTERS]


def _answers(
    lm: "PrefixLM", encoder: ChatEncoder, asked: list[Asked], letters: list[int]
) -> tuple[list[list[float]], list[int]]:
    """Log-probabilities of the four letters for each prompt, in nats, and the tokens that each lost at its front."""
    encoded = [encoder.encode(prompt.turns) for prompt in asked]
    lost = [max(0, len(ids) - lm.max_length) for ids in encoded]
    rows = {tuple(ids[-lm.max_length :]): None for ids in encoded}
    found = lm.score(list(rows), [numpy.array(letters, dtype=numpy.int32)] * len(rows))
    values = dict(zip(rows, found, strict=True))
    return [[values[tuple(ids[-lm.max_length :])][token][0] for token in letters] for ids in encoded], lost


def _table(task: str, asked: list[Asked], logprobs: list[list[float]], lost: list[int]) -> "pyarrow.Table":
    import pyarrow

    best = [max(range(len(LETTERS)), key=row.__getitem__) for row in logprobs]  # the first of equals
    columns: dict[str, object] = {
        "task": [task] * len(asked),
        "subject": [prompt.subject for prompt in asked],
        "id": pyarrow.array([prompt.number for prompt in asked], pyarrow.int64()),
        "prediction": [LETTERS[index] for index in best],
        "target": [prompt.target for prompt in asked],
    }
    for index, letter in enumerate(LETTERS):
        values = pyarrow.array([row[index] for row in logprobs], pyarrow.float32())
        columns[f"logprob_{letter.lower()}"] = values
    columns["cut_tokens"] = pyarrow.array(lost, pyarrow.int32())
    return pyarrow.table(columns)


def _scores(benchmark: str, table: "pyarrow.Table") -> dict:
    from aurora.eval.tasks import category_of

    right = numpy.array(table["prediction"]) == numpy.array(table["target"])
    names = [f"{benchmark}_{subject}" for subject in table["subject"].to_pylist()]
    groups = numpy.array([OTHER_CATEGORY.get(name) or category_of(benchmark, name) or "" for name in names])
    categories = {str(name): _score(right[groups == name]) for name in numpy.unique(groups[groups != ""])}
    cut = sum(map(bool, table["cut_tokens"].to_pylist()))
    return _score(right) | {"too_long": cut, "categories": categories}


def _score(right: numpy.ndarray) -> dict:
    accuracy = float(right.mean())
    error = (accuracy * (1 - accuracy) / max(1, len(right) - 1)) ** 0.5
    return {"acc": accuracy, "stderr": error, "n": len(right)}
