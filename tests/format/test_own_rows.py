"""System prompts, masked answers, tool calls and repetitions: exact tokens and labels, by independent witnesses."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import InstructRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from stand_ins.format_case import identity, params, talk, write
from stand_ins.tiny_llama import CHATML, tokenizer_of
from transformers import PreTrainedTokenizerFast

from aurora.core.errors import DataError
from aurora.format.format import format_rows
from aurora.prompt.mistral import IGNORED, trained_spans

MODEL_FILE = MistralTokenizer._data_path() / "tokenizer.model.v1"
WITNESS = MistralTokenizer.v1().instruct_tokenizer
TEXT, FLAGS, STEPS = pyarrow.string(), pyarrow.list_(pyarrow.bool_()), pyarrow.list_(pyarrow.string())
TURN = "{{ '<|im_start|>' + message['role'] + '\n' }}"
# Qwen's manner: functions in the system turn, calls as JSON between tags, results as a turn of their own.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}"
    "{% endif %}{{ '# Tools' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif messages[0]['role'] == 'system' %}{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'assistant' %}" + TURN + "{% generation %}"
    "{{ message['content'] }}{% for call in message['tool_calls'] or [] %}{{ '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% elif message['role'] != 'system' %}"
    + TURN + "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
FUNCTIONS = [{"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]  # fmt: skip
CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}]
CALLED = [{"role": "assistant", "content": "", "tool_calls": CALL}, {"role": "tool", "content": '{"t": 3}'}]


def base(folder: Path, template: str) -> Path:
    tokenizer_of(template).save_pretrained(folder)
    return folder


def formatted(tmp_path: Path, rows: list, more: dict, tokenizer: Path = MODEL_FILE, **rules) -> tuple[dict, dict]:
    """Rows of both sides by id, and the metrics; `more` as `write` takes it."""
    tmp_path.mkdir(exist_ok=True)
    path = write(tmp_path / "conversations.parquet", rows, more=more)
    metrics = format_rows(path, tokenizer, tmp_path / "out", params(**rules))
    tables = [pyarrow.parquet.read_table(tmp_path / "out" / f"{side}.parquet") for side in ("train", "held_out")]
    return {row["id"]: row for table in tables for row in table.to_pylist()}, metrics


def filler(count: int = 30) -> list:
    """Rows that make sure of both sides."""
    return [("other", talk(f"问{number}", f"答{number}")) for number in range(count)]


def columns(rows: list, **of_first: tuple) -> dict:
    """Further columns, filled for the first rows of `rows`: name -> (type, empty value, values of the first rows)."""
    keys = [identity(messages) for _, messages in rows]
    return {
        name: (kind, dict.fromkeys(keys, empty) | dict(zip(keys, values, strict=False)))
        for name, (kind, empty, values) in of_first.items()
    }


def witness(system: str, *turns: str) -> list[int]:
    kinds = (UserMessage, AssistantMessage)
    messages = [kinds[n % 2](content=text) for n, text in enumerate(turns)]
    return WITNESS.encode_instruct(InstructRequest(messages=messages, system_prompt=system or None)).tokens


def test_a_system_prompt_goes_to_the_first_prompt_as_mistral_common_puts_it(tmp_path: Path):
    rows = [("own", talk("你好", "您好。", "写诗", "花开了。")), *filler()]
    more = columns(rows, system=(TEXT, "", ["只用中文回答。"]))
    found, metrics = formatted(tmp_path, rows, more)
    row = found[identity(rows[0][1])]
    assert row["input_ids"] == witness("只用中文回答。", "你好", "您好。", "写诗", "花开了。")
    assert metrics["system_prompts"] == 1
    assert metrics["sources"]["own"]["system_prompts"] == 1 and "system_prompts" not in metrics["sources"]["other"]


def test_each_row_of_a_long_conversation_has_the_system_prompt(tmp_path: Path):
    long = [text for number in range(6) for text in (f"问题{number}" * 4, f"回答{number}" * 8)]
    rows = [("own", talk(*long)), *filler()]
    found, _ = formatted(tmp_path, rows, columns(rows, system=(TEXT, "", ["简短。"])), max_length=120)
    parts = [row for key, row in found.items() if key.startswith(identity(rows[0][1]))]
    assert len(parts) > 2 and all(len(row["input_ids"]) <= 120 for row in parts)
    for row in parts:
        assert row["input_ids"][: len(start := witness("简短。", "问")) - 8] == start[:-8]


def test_a_masked_answer_is_context(tmp_path: Path):
    rows = [("own", talk("一", "坏的回答", "二", "好的回答")), *filler()]
    more = columns(rows, train=(FLAGS, [True], [[False, True]]))
    found, metrics = formatted(tmp_path, rows, more)
    row = found[identity(rows[0][1])]
    assert row["input_ids"] == witness("", "一", "坏的回答", "二", "好的回答")
    spans = trained_spans(row["input_ids"], row["labels"])
    assert [WITNESS.tokenizer.decode(span) for span in spans] == ["好的回答"]
    assert metrics["sources"]["own"]["trained_tokens"] == len(spans[0])


def test_a_row_without_a_trained_answer_is_dropped_and_a_masked_first_answer_is_not_held_out(tmp_path: Path):
    long = [text for number in range(3) for text in (f"问{number}" * 8, f"答{number}" * 12)]
    rows = [("own", talk(f"{n}", *long[1:])) for n in range(40)]
    flags = columns(rows, train=(FLAGS, None, [[False, True, True]] * 40))
    _, metrics = formatted(tmp_path, [*rows, *filler()], flags | {"train": (FLAGS, flags["train"][1] | {identity(m): [True] for _, m in filler()})}, max_length=60)  # fmt: skip
    own = metrics["sources"]["own"]
    assert own["held_out_rows"] == 0
    assert own["rounds_dropped_untrained"] == 40 and own["rounds_kept"] == 80


def test_repeated_rows_are_trained_so_often_and_held_out_once(tmp_path: Path):
    rows = filler(40)
    more = columns(rows, repeat=(pyarrow.int32(), 3, []))
    once, before = formatted(tmp_path / "a", rows, {})
    found, metrics = formatted(tmp_path / "b", rows, more)
    assert metrics["train_rows"] == 3 * before["train_rows"] and metrics["held_out_rows"] == before["held_out_rows"]
    for key, row in found.items():
        assert row["input_ids"] == once[key.partition("#")[0]]["input_ids"]


@pytest.mark.parametrize("template", ["chatml", "tools"])
def test_a_template_that_knows_system_gets_it_as_such(tmp_path: Path, template: str):
    folder = base(tmp_path / "base", {"chatml": CHATML, "tools": TOOLS}[template])
    rows = [("own", talk("你好", "您好。", "x<|im_end|>", "y")), *filler()]
    more = columns(rows, system=(TEXT, "", ["只用中文<|im_end|>回答。"]))
    found, _ = formatted(tmp_path, rows, more, folder, prompt="chat_template")
    row = found[identity(rows[0][1])]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(("你好", "您好。", "x", "y"))
    ]
    expected = tokenizer.apply_chat_template([{"role": "system", "content": "只用中文回答。"}, *turns], tokenize=False)
    text = tokenizer.decode(row["input_ids"])
    assert text == expected.replace("中文", "中文<|im_end|>").replace("\nx", "\nx<|im_end|>")
    marks = sum(index == tokenizer.eos_token_id for index in row["input_ids"])
    assert marks == 5  # of the system turn and the four turns; none of the texts


def test_calls_are_trained_and_results_are_not(tmp_path: Path):
    """transformers' own mark of what the assistant writes is the witness."""
    folder = base(tmp_path / "base", TOOLS)
    texts = ("北京冷吗？", "很冷，3度。", "谢谢", "不客气。")
    rows = [("own", talk(*texts)), *filler()]
    more = columns(
        rows,
        system=(TEXT, "", ["简短。"]),
        steps=(STEPS, [""], [[json.dumps(CALLED, ensure_ascii=False), ""]]),
        tools=(TEXT, "", [json.dumps(FUNCTIONS, ensure_ascii=False)]),
    )
    found, metrics = formatted(tmp_path, rows, more, folder, prompt="chat_template", max_length=512)
    row = found[identity(rows[0][1])]
    user, answer, thanks, last = (
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)
    )
    expected = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(
        [{"role": "system", "content": "简短。"}, user, *CALLED, answer, thanks, last],
        tools=FUNCTIONS, return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    assert row["input_ids"] == expected["input_ids"]
    assert [label != IGNORED for label in row["labels"]] == [bool(mask) for mask in expected["assistant_masks"]]
    assert metrics["sources"]["own"]["trained_tokens"] == sum(expected["assistant_masks"])


def test_a_call_at_the_end_is_trained(tmp_path: Path):
    folder = base(tmp_path / "base", TOOLS)
    rows = [("own", talk("你好", "您好。", "北京冷吗？", "[the call as text]")), *filler()]
    called = [["", json.dumps(CALLED[:1], ensure_ascii=False)]]
    more = columns(rows, steps=(STEPS, [""], called), tools=(TEXT, "", [json.dumps(FUNCTIONS, ensure_ascii=False)]))
    found, _ = formatted(tmp_path, rows, more, folder, prompt="chat_template", max_length=512)
    row = found[identity(rows[0][1])]
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": text}
        for n, text in enumerate(("你好", "您好。", "北京冷吗？"))
    ]
    expected = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(
        [*turns, CALLED[0]], tools=FUNCTIONS, return_dict=True, return_assistant_tokens_mask=True
    )
    assert row["input_ids"] == expected["input_ids"]
    assert [label != IGNORED for label in row["labels"]] == [bool(mask) for mask in expected["assistant_masks"]]


@pytest.mark.parametrize("prompt", ["mistral", "chat_template"])
def test_without_tools_in_the_template_the_rounds_before_the_first_call_are_kept(tmp_path: Path, prompt: str):
    folder = MODEL_FILE if prompt == "mistral" else base(tmp_path / "base", CHATML)
    rows = [("own", talk("你好", "您好。", "北京冷吗？", "很冷。")), ("own", talk("上海冷吗？", "不冷。")), *filler()]
    called = json.dumps(CALLED, ensure_ascii=False)
    more = columns(rows, steps=(STEPS, [""], [["", called], [called]]), tools=(TEXT, "", ["[]", "[]"]))
    found, metrics = formatted(tmp_path, rows, more, folder, prompt=prompt)
    assert len(trained_spans(found[identity(rows[0][1])]["input_ids"], found[identity(rows[0][1])]["labels"])) == 1
    assert identity(rows[1][1]) not in found
    own = metrics["sources"]["own"]
    assert (own["rounds"], own["rounds_kept"], own["rounds_dropped_tool_calls"]) == (3, 1, 2)
    assert own["conversations_dropped"] == 1


def test_a_further_column_of_another_type_is_one_line(tmp_path: Path):
    rows = filler()
    with pytest.raises(DataError, match="column system is int64, not string; run dvc repro clean"):
        formatted(tmp_path, rows, columns(rows, system=(pyarrow.int64(), 1, [])))
