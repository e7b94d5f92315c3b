"""The fixed prompts: their file, their tokens, and dialogues that go on from the model's own replies."""

from pathlib import Path

import pytest
import torch
from stand_ins.tiny_mixtral import VOCABULARY, load_tokenizer, tiny_model

from aurora.core.chinese import CHINESE_CHARACTER
from aurora.core.errors import DataError
from aurora.core.messages import Message
from aurora.eval.params import Replies
from aurora.eval.prompt_set import Dialogue, answer_prompt_set, read_prompt_set
from aurora.eval.replies import reply_metrics
from aurora.prompt.mistral import encode, trained_spans
from aurora.prompt.tokenizer import sentencepiece_processor

ROOT = Path(__file__).parent.parent.parent
PARAMS = Replies(prompts=1, max_new_tokens=6, batch_size=2)
KINDS = (
    "medical",
    "arithmetic",
    "creative_writing",
    "answers_from_text",
    "poems_and_couplets",
    "business_email",
    "dialogue",
    "translation",
    "code",
)


def test_the_nine_kinds_and_the_first_words_are_there() -> None:
    found = read_prompt_set(ROOT / "samples/prompts.yaml")
    kinds = list(dict.fromkeys(dialogue.kind for dialogue in found))
    assert kinds == ["first_words", *KINDS]
    assert [dialogue.turns for dialogue in found[:3]] == [("你好",), ("你是谁?",), ("我今天肚子疼",)]
    assert all((len(dialogue.turns) > 1) == (dialogue.kind == "dialogue") for dialogue in found)
    assert all(CHINESE_CHARACTER.search(turn) for dialogue in found for turn in dialogue.turns)
    assert len({dialogue.turns for dialogue in found}) == len(found) >= 39


def test_no_prompt_of_a_kind_is_a_row_of_the_small_profile() -> None:
    rows = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("samples/*.json*"))
    for dialogue in read_prompt_set(ROOT / "samples/prompts.yaml"):
        for turn in dialogue.turns if dialogue.kind in KINDS else ():
            assert all(line not in rows for line in turn.splitlines() if len(line) > 12)


@pytest.mark.parametrize("form", ["mistral", "bos_every_turn"])
def test_a_dialogue_goes_on_from_the_replies_of_the_model(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = load_tokenizer(tmp_path), tiny_model()
    dialogues = [Dialogue("a", 1, ("你好", "再说一遍", "好的")), Dialogue("b", 1, ("你是谁?",))]
    asked = []

    def tokens(_model, prompts, *_rest):
        asked.extend((prompt.text, prompt.tokens) for prompt in prompts)
        return [tokenizer.encode("我在", add_special_tokens=False) for _ in prompts]

    monkeypatch.setattr("aurora.eval.prompt_set.greedy_tokens", tokens)
    metrics, table = answer_prompt_set(model, tokenizer, dialogues, form, PARAMS, 500)
    processor = sentencepiece_processor(VOCABULARY)
    turns = [Message("user", "你好"), Message("assistant", "我在"), Message("user", "再说一遍")]
    turns += [Message("assistant", "我在"), Message("user", "好的")]
    expected = {"你好": turns[:1], "你是谁?": [Message("user", "你是谁?")], "再说一遍": turns[:3], "好的": turns}
    for text, messages in expected.items():  # what training has in front of the answer
        ids, labels = encode(processor, [*messages, Message("assistant", "我在")], form)
        assert dict(asked)[text] == ids[: len(ids) - len(trained_spans(ids, labels)[-1])]
    rows = table.to_pylist()
    assert [(row["kind"], row["round"], row["prompt"]) for row in rows] == [
        ("a", 1, "你好"),
        ("a", 2, "再说一遍"),
        ("a", 3, "好的"),
        ("b", 1, "你是谁?"),
    ]
    assert metrics == reply_metrics(["我在"] * 4) | {
        "n": 4,
        "kinds": {"a": reply_metrics(["我在"] * 3) | {"n": 3}, "b": reply_metrics(["我在"]) | {"n": 1}},
    }
    assert {row["language"] for row in rows} == {"Chinese"}


def test_replies_are_those_of_transformers(tmp_path: Path) -> None:
    tokenizer, model = load_tokenizer(tmp_path), tiny_model()
    dialogues = [Dialogue("a", 1, ("你好", "再说一遍")), Dialogue("a", 2, ("你是谁?",))]
    _, table = answer_prompt_set(model, tokenizer, dialogues, "mistral", PARAMS, 500)
    ids: list[int] = []
    for row in table.to_pylist()[:2]:
        turn = tokenizer.encode(f"[INST] {row['prompt']} [/INST]", add_special_tokens=False)
        ids += [*([] if ids else [1]), *turn]
        found = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=2)
        reply = [token for token in found[0, len(ids) :].tolist() if token != 2]
        assert row["reply"] == tokenizer.decode(reply, skip_special_tokens=True).strip()
        ids += [*reply, 2]


def test_a_dialogue_that_may_outgrow_the_context_is_named(tmp_path: Path) -> None:
    dialogues = [Dialogue("long", 3, ("你好" * 40, "再见" * 40))]
    with pytest.raises(DataError, match=r"long, prompt 3: up to \d+ tokens with its replies, but the context has 64"):
        answer_prompt_set(tiny_model(), load_tokenizer(tmp_path), dialogues, "mistral", PARAMS, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected kinds such as 'code:'"),
        ("- 你好\n", "expected kinds such as 'code:'"),
        ("medical: 你好\n", "medical: expected a list of prompts, found '你好'"),
        ("medical: []\n", "medical: expected a list of prompts"),
        ("medical: [你好, 3]\n", "medical, prompt 2: 3 is no text"),
        ("medical: [[你好, '  ']]\n", "medical, prompt 1: '  ' is no text"),
        ("medical: [[]]\n", r"medical, prompt 1: \[\] is no text"),
        ("medical: [你好\n", "not YAML"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        read_prompt_set(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.yaml: not found"):
        read_prompt_set(tmp_path / "none.yaml")
