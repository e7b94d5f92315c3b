"""The paper's own protocol against a transcription of its repository's evaluator, question by question."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from lm_eval.tasks._yaml_loader import load_yaml
from sentencepiece import SentencePieceProcessor
from stand_ins.tiny_llama import CHATML, vocabulary
from stand_ins.tiny_mixtral import VOCABULARY, load_tokenizer, tiny_model
from transformers import PreTrainedTokenizerFast

from aurora.core.errors import DataError
from aurora.eval.benchmarks import read_benchmark
from aurora.eval.chat_encoder import ChatEncoder
from aurora.eval.paper_protocol import score_paper_protocol, subject_prompts
from aurora.eval.params import Eval
from aurora.eval.prefix import PrefixLM
from aurora.eval.tasks import FAMILIES, subject_title

NAMES = ("ceval", "mmlu", "cmmlu")
FILES = {
    "ceval": ("dev/{}_dev.csv", "val/{}_val.csv"),
    "mmlu": ("data/dev/{}_dev.csv", "data/test/{}_test.csv"),
    "cmmlu": ("dev/{}.csv", "test/{}.csv"),
}
LIMITS = {"ceval": 2, "mmlu": 3, "cmmlu": 2}  # MMLU loses the first
SYSTEMS = {
    "en": "The following are multiple choice questions (with answers) about {subject}.\n\n",
    "zh": "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n",
}
ANSWERS, PREFIXES = {"en": "\nAnswer: ", "zh": "\n答案："}, {"en": " ", "zh": "\n"}


def params(**changes: object) -> Eval:
    tasks = {name: {"num_fewshot": 5, "limit": LIMITS[name]} for name in NAMES}
    content = {
        "tasks": tasks,
        "protocols": ["lm_eval", "paper"],
        "batch_tokens": 2048,
        "max_length": 4096,
        "chat_template": False,
        "loss_rows": None,
        "threads": 1,
        "replies": {"prompts": 1, "max_new_tokens": 1, "batch_size": 1},
    }
    return Eval.model_validate_json(json.dumps(content | changes))


def csv_rows(path: Path, benchmark: str) -> list[dict]:
    """As the repository's loaders give them: for MMLU the first row is taken for a header."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        if benchmark == "mmlu":
            return [dict(zip(("question", *"ABCD", "answer"), row, strict=True)) for row in csv.reader(file)][1:]
        rows = list(csv.DictReader(file))
    for row in rows:
        row.setdefault("question", row.get("Question"))
        row.setdefault("answer", row.get("Answer"))
    return rows


def transcribed(root: Path, benchmark: str, subject: str, title: str, language: str, limit: int, form: str):
    """Token ids and right letter of the first questions: EvalTemplate.format_example and Template.encode_oneturn."""
    processor = SentencePieceProcessor(model_file=str(VOCABULARY))
    dev, test = (csv_rows(root / benchmark / name.format(subject), benchmark) for name in FILES[benchmark])

    def parse_example(example: dict) -> tuple[str, str]:
        candidates = [f"\n{choice}. {example[choice]}" for choice in "ABCD"]
        return "".join([example["question"], *candidates, ANSWERS[language]]), example["answer"]

    found = []
    first = 1 if benchmark == "mmlu" else 0
    for number, row in enumerate(test[: limit - first], start=first):
        draw = random.Random(f"42 {benchmark} {subject} {number}")
        history = [parse_example(shot) for shot in draw.sample(dev, min(5, len(dev)))]
        history[0] = (SYSTEMS[language].format(subject=title) + history[0][0], history[0][1])
        query, answer = parse_example(row)
        ids: list[int] = []
        for turn, (question, reply) in enumerate([*history, (query.strip(), None)]):
            ids += [1] if turn == 0 or form == "bos_every_turn" else []
            ids += processor.encode(f"[INST] {question} [/INST]")
            ids += [*processor.encode(reply), 2] if reply else []
        found.append((ids, answer))
    return found


def letter_of(model, processor: SentencePieceProcessor, ids: list[int], language: str) -> str:
    letters = [processor.encode(PREFIXES[language] + letter)[-1] for letter in "ABCD"]
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
    return "ABCD"[int(logits[letters].argmax())]


def title_of(benchmark: str, subject: str) -> str:
    """As the repository's mapping.json has it, which agrees with lm-eval's files for all 176 subjects."""
    folder, prefix, _ = FAMILIES[benchmark]
    description = load_yaml(folder / f"{prefix}{subject}.yaml")["description"].strip()
    if benchmark == "mmlu":
        return description.partition(" about ")[2].removesuffix(".")
    return description.partition("关于")[2].partition("的单项选择题")[0]


def compare(root: Path, folder: Path, form: str, languages: dict[str, list[str]]) -> int:
    """Both evaluators on the first questions of every subject; returns how many questions there were."""
    tokenizer, model = load_tokenizer(folder), tiny_model()
    processor = SentencePieceProcessor(model_file=str(VOCABULARY))
    lm = PrefixLM(model, tokenizer=tokenizer, batch_tokens=2048, max_length=4096)
    subjects = {name: read_benchmark(root / name, name, 5, LIMITS[name]) for name in NAMES}
    settings = params(paper_protocol={"prompts": languages, "seed": 42})
    results, table = score_paper_protocol(lm, subjects, settings, form)
    rows = {(row["task"], row["subject"], row["id"]): row for row in table.to_pylist()}
    encoder, count, right = ChatEncoder(tokenizer, form), 0, 0
    for name, chosen in languages.items():
        for language in chosen:
            for subject in subjects[name]:
                title = title_of(name, subject.name)
                expected = transcribed(root, name, subject.name, title, language, LIMITS[name], form)
                asked = list(subject_prompts(name, subject, language, 5, 42))
                assert [encoder.encode(prompt.turns) for prompt in asked] == [ids for ids, _ in expected]
                for prompt, (ids, answer) in zip(asked, expected, strict=True):
                    row = rows[f"{name}_{language}", subject.name, prompt.number]
                    assert row["target"] == answer
                    assert row["prediction"] == letter_of(model, processor, ids, language)
                    count, right = count + 1, right + (row["prediction"] == answer)
    scores = results.values()
    assert sum(score["acc"] * score["n"] for score in scores) == pytest.approx(right)
    assert sum(score["n"] for score in scores) == count
    return count


@pytest.mark.minutes
@pytest.mark.parametrize("form", ["mistral", "bos_every_turn"])
def test_letters_are_those_of_the_repository_on_the_samples(root: Path, tmp_path: Path, form: str) -> None:
    languages = {"ceval": ["zh"], "mmlu": ["en"], "cmmlu": ["en", "zh"]}
    subjects = {name: len(read_benchmark(root / "samples" / name, name, 0, 1)) for name in NAMES}
    count = compare(root / "samples", tmp_path, form, languages)
    assert count == 2 * (subjects["ceval"] + subjects["mmlu"] + 2 * subjects["cmmlu"])


@pytest.mark.minutes
def test_letters_are_those_of_the_repository_on_real_questions(real_data: Path, tmp_path: Path) -> None:
    languages = {"ceval": ["zh"], "mmlu": ["en"], "cmmlu": ["en"]}
    assert compare(real_data / "benchmarks", tmp_path, "bos_every_turn", languages) == 352


def test_counts_are_the_papers(real_data: Path) -> None:
    """13,985 questions of MMLU with four shots each."""
    subjects = read_benchmark(real_data / "benchmarks" / "mmlu", "mmlu", 5)
    asked = [prompt for subject in subjects for prompt in subject_prompts("mmlu", subject, "en", 5, 42)]
    assert len(asked) == 13_985
    assert {len(prompt.turns) for prompt in asked} == {9}


def test_shots_are_drawn_anew_and_depend_on_nothing_else(root: Path) -> None:
    few, all_ = (read_benchmark(root / "samples" / "cmmlu", "cmmlu", 5, limit)[0] for limit in (2, None))
    draws = [prompt.turns[:-1] for prompt in subject_prompts("cmmlu", all_, "zh", 3, 42)]
    assert draws[:2] == [prompt.turns[:-1] for prompt in subject_prompts("cmmlu", few, "zh", 3, 42)]
    assert len({tuple(turns) for turns in draws}) > 1
    other = [prompt.turns[:-1] for prompt in subject_prompts("cmmlu", all_, "zh", 3, 7)]
    assert other != draws


def test_chat_template_gives_the_ids_of_the_tokeniser(root: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary(), chat_template=CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    subject = read_benchmark(root / "samples" / "ceval", "ceval", 2, 1)[0]
    (asked,) = subject_prompts("ceval", subject, "zh", 2, 42)
    roles = ["user", "assistant"]
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(asked.turns)]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ChatEncoder(tokenizer, "chat_template").encode(asked.turns) == list(expected)


def test_titles_are_those_of_the_repository() -> None:
    titles = {
        ("ceval", "accountant"): "注册会计师",
        ("ceval", "law"): "法学",
        ("cmmlu", "agronomy"): "农学",
        ("cmmlu", "ancient_chinese"): "古汉语",
        ("cmmlu", "anatomy"): "解剖学",
        ("mmlu", "abstract_algebra"): "abstract algebra",
        ("mmlu", "high_school_us_history"): "high school us history",
    }
    assert {key: subject_title(*key) for key in titles} == titles


def test_no_question_is_one_line(root: Path, tmp_path: Path) -> None:
    subjects = {"mmlu": read_benchmark(root / "samples" / "mmlu", "mmlu", 5, 1)}
    settings = params(paper_protocol={"prompts": {"mmlu": ["en"]}, "seed": 42})
    lm = PrefixLM(tiny_model(), tokenizer=load_tokenizer(tmp_path), max_length=4096)
    with pytest.raises(DataError, match="leaves no question"):
        score_paper_protocol(lm, subjects, settings, "mistral")


def test_protocols_hold_lm_eval_once() -> None:
    for protocols in (["paper"], ["lm_eval", "lm_eval"]):
        with pytest.raises(ValueError, match=r"write \[lm_eval\] or \[lm_eval, paper\]"):
            params(protocols=protocols)
