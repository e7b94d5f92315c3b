"""Data as people have it: each fault that was found in real sets, as an input and what must become of it."""

import csv
import gzip
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from stand_ins.clean_case import CLEAN, ROOT, Cleaned, put, row
from stand_ins.clean_case import cleaned as cleaned_sources

from aurora.clean.apply_rules import Applied, apply_rules
from aurora.clean.clean_page import WORDS
from aurora.clean.layouts import LAYOUTS, detect, layout_of
from aurora.clean.params import overridden
from aurora.clean.parse_rows import parse
from aurora.clean.read_files import data_files, read_items
from aurora.clean.repairs import without_entities, without_html
from aurora.core.errors import DataError, ParamsError
from aurora.sources.source import Source
from stages.clean import main

ANSWER = "多运动，多喝水，早点睡觉。"


def applied(item: object, format_: str = "messages", **rules: object) -> Applied:
    layout = layout_of("own", format_, [item])
    return apply_rules(parse(item, layout), CLEAN.model_copy(update=rules))


def rounds(item: object, format_: str = "messages", **rules: object) -> list[tuple[str, str]]:
    found = applied(item, format_, **rules)
    assert not found.drop, found.drop
    return [each[:2] for each in found.rounds]


def reason(item: object, format_: str = "messages") -> str:
    found = applied(item, format_)
    assert found.drop, found
    return found.drop.reason


def cleaned(tmp_path: Path, rows: object, format_: str = "alpaca", **entry: object) -> Cleaned:
    source = Source(kind="instructions", uri="own.json", format=format_, licence="MIT", **entry)
    off = CLEAN.model_copy(update={"contamination": None})
    folders = {"own": put(tmp_path, "own", rows, format_)}
    return cleaned_sources(folders, [], off, {"own": source}, tmp_path / "out")


def messages(*turns: tuple[str, str], **more: object) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in turns]} | more


# 1. Further columns


@pytest.mark.parametrize(
    "column", ["text", "url", "uuid", "created_at", "copyright", "model", "en_output", "news article"]
)
def test_a_further_column_is_not_the_missing_input(tmp_path: Path, column: str):
    rows = [row("给出三个建议。", ANSWER, **{column: "Below is an instruction that describes a task."})]
    found = cleaned(tmp_path, rows)
    assert [c.rounds[0][:2] for c, _ in found.kept] == [("给出三个建议。", ANSWER)]
    assert found.metrics["sources"]["own"]["ignored_columns"] == {column: 1}


def test_a_source_without_input_ignores_other_columns_and_one_with_it_misses_it():
    bare = {"instruction": "给出三个建议。", "output": ANSWER, "text": "Below is an instruction that describes."}
    assert rounds(bare, "alpaca")
    layout = layout_of("own", "alpaca", [row("问", "答"), bare])
    assert parse(bare, layout).reason == "stray_key"


# 2. An empty instruction


@pytest.mark.parametrize("instruction", ["", None, "  "])
def test_the_prompt_is_what_is_there(instruction: object):
    assert rounds({"instruction": instruction, "input": "讲个故事", "output": ANSWER}, "alpaca")[0][0] == "讲个故事"


# 3. System prompts

PAIR = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": ANSWER}]


@pytest.mark.parametrize(
    ("item", "format_"),
    [
        ({"system": "简短。", "conversations": PAIR}, "sharegpt"),
        ({"conversations": [{"from": "system", "value": "简短。"}, *PAIR]}, "sharegpt"),
        ({"conversations": [{"from": "system", "value": "简短。"}, {"from": "gpt", "value": "欢迎"}, *PAIR]}, "sharegpt"),
        ({"conversation": [{"system": "简短。", "input": "你好", "output": ANSWER}]}, "sharegpt"),
        ({"instruction": "你好", "input": "", "output": ANSWER, "system": "简短。"}, "alpaca"),
        ({"input": "你好", "output": ANSWER, "system": "简短。"}, "input_output"),
    ],
)  # fmt: skip
def test_every_layout_has_the_same_system_prompt(item: dict, format_: str):
    found = applied(item, format_)
    assert found.system == "简短。" and found.rounds[0][:2] == ("你好", ANSWER)
    assert "system_prompt" in found.repaired


def test_several_system_turns_are_joined_and_a_later_one_goes_to_the_next_prompt():
    turns = [("system", "一。"), ("system", "二。"), ("user", "问"), ("assistant", "好的。"), ("system", "三。"), ("user", "再问"), ("assistant", "好的。")]  # fmt: skip
    found = applied(messages(*turns))
    assert found.system == "一。\n\n二。"
    assert [each.prompt for each in found.rounds] == ["问", "三。\n\n再问"]


def test_equal_rounds_with_other_system_prompts_are_other_rows(tmp_path: Path):
    rows = [{"conversations": PAIR}, {"conversations": PAIR, "system": "简短。"}]
    source = Source(kind="instructions", uri="o.json", format="sharegpt", licence="MIT")
    off = CLEAN.model_copy(update={"contamination": None, "near_duplicates": None})
    folders = {"own": put(tmp_path, "own", rows, "sharegpt")}
    found = cleaned_sources(folders, [], off, {"own": source}, tmp_path)
    assert len({conversation.id for conversation, _ in found.kept}) == 2
    table = pyarrow.parquet.read_table(tmp_path / "conversations.parquet")
    assert sorted(table["system"].to_pylist()) == ["", "简短。"]


# 4. Answers that are not to be trained


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"loss": False}, {"train": False}, {"loss_weight": 0.0}, {"mask": True}, {"weight": 0.0}]
)
def test_a_marked_answer_stays_as_context(mark: dict):
    turns = messages(("user", "一"), ("assistant", "坏的。"), ("user", "二"), ("assistant", "好的。"))
    turns["messages"][1] |= mark
    found = applied(turns)
    assert [each.train for each in found.rounds] == [False, True] and "answer_masked" in found.repaired
    turns["messages"][3] |= mark
    assert reason(turns) == "not_to_train"


def test_answers_with_weight_are_trained():
    turns = messages(("user", "一"), ("assistant", "好的。"))
    turns["messages"][1] |= {"weight": 1, "loss": True, "mask": False}
    assert applied(turns).rounds[0].train


def test_a_row_that_is_marked_as_bad_goes():
    assert reason(messages(("user", "一"), ("assistant", "坏的。")) | {"label": False}) == "marked_as_bad"
    assert rounds(messages(("user", "一"), ("assistant", "好的。")) | {"label": True})


def test_reasoning_and_tool_calls_are_counted_and_kept():
    call = {"function": {"name": "weather", "arguments": '{"city": "北京"}'}}
    turns = [
        {"role": "user", "content": "北京冷吗？"},
        {"role": "assistant", "content": "我查查。", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "很冷。", "reasoning_content": "3 度"},
    ]
    tools = [{"name": "weather", "parameters": {}}]
    found = applied({"messages": turns, "tools": json.dumps(tools)})
    assert "reasoning_removed" in found.repaired
    steps = json.loads(found.rounds[0].steps)
    assert steps[0]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "北京"}}
    assert found.rounds[0].answer == "很冷。" and json.loads(found.tools)[0]["function"] == tools[0]


@pytest.mark.parametrize("behind", [[], [{"role": "tool", "content": "3"}], [{"role": "user", "content": "上海呢？"}]])
def test_a_row_may_end_on_its_call(behind: list):
    call = {"function": {"name": "weather", "arguments": '{"city": "北京"}'}}
    turns = [{"role": "user", "content": "北京冷吗？"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    found = applied({"messages": turns + behind, "tools": [{"name": "weather", "parameters": {}}]})
    (last,) = json.loads(found.rounds[0].steps)
    assert last["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "北京"}}
    assert json.loads(found.rounds[0].answer) == [{"name": "weather", "arguments": {"city": "北京"}}]
    assert ("trailing_user_trimmed" in found.repaired) is bool(behind)


def test_a_result_without_an_answer_in_the_middle_is_a_fault():
    turns = [{"from": role, "value": text} for role, text in (("human", "北京冷吗？"), ("function_call", '{"name": "w"}'), ("observation", "3"), ("human", "上海呢？"), ("gpt", "不冷。"))]  # fmt: skip
    assert reason({"conversations": turns}, "sharegpt") == "result_unanswered"


def test_sharegpt_names_calls_by_their_roles():
    turns = [("human", "北京冷吗？"), ("function_call", '{"name": "weather", "arguments": {"city": "北京"}}'), ("observation", "3"), ("gpt", "很冷。")]  # fmt: skip
    found = applied({"conversations": [{"from": role, "value": text} for role, text in turns]}, "sharegpt")
    assert json.loads(found.rounds[0].steps)[1] == {"role": "tool", "content": "3"}


# 6. No row is left


@pytest.mark.parametrize(
    ("rows", "format_", "told"),
    [
        ([row("问", ANSWER)], "sharegpt", "missing_key 1; the first missing_key: no list under messages or conversation or conversations; there is instruction: str, input: str, output: str; keys instruction, input, output: format: alpaca?"),
        ([{"prompt": "问", "chosen": "好", "rejected": "坏"}], "messages", "preference_pair 1; the first preference_pair: chosen and rejected; rows are preference pairs: columns: {prompt: prompt, answer: chosen} trains on the chosen answers"),
        ([{"q": "问", "a": "答"}], "alpaca", "missing_key 1; the first missing_key: no instruction and no output; there is q, a; keys q, a: map them by columns: {prompt: …, answer: …}"),
        ([row("问", "")], "alpaca", "empty_answer 1; the first empty_answer: user: 问 / assistant: "),
    ],
)  # fmt: skip
def test_no_row_is_left_says_why_and_what_fits(tmp_path: Path, rows: list, format_: str, told: str):
    found = cleaned(tmp_path, rows, format_)
    assert found.metrics["notes"][-1] == f"own: no row is left of 1: {told}"


# 8. Markers of templates, and HTML


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("Below is an instruction that describes a task.\n\n### Instruction:\n写诗\n\n### Input:\n春天\n\n### Response:", "花开了。", [("写诗\n春天", "花开了。")]),
        ("你好", "您好。<|im_end|>", [("你好", "您好。")]),
        ("你好", "您好。<|endoftext|>", [("你好", "您好。")]),
        ("你好", "您好。<eom>", [("你好", "您好。")]),
        ("你好", "### Response:\n您好。", [("你好", "您好。")]),
        ("Human: 你好\nAssistant: 您好。\nHuman: 写诗\nAssistant:", "花开了。", [("你好", "您好。"), ("写诗", "花开了。")]),
        ("<user>: 你好 <bot>: 您好。 <user>: 写诗 <bot>:", "花开了。", [("你好", "您好。"), ("写诗", "花开了。")]),
        ("[INST] 你好 [/INST] 您好。 [INST] 写诗 [/INST]", "花开了。", [("你好", "您好。"), ("写诗", "花开了。")]),
        ("你好", "您好。\n\nHuman: 写诗\n\nAssistant: 花开了。", [("你好", "您好。"), ("写诗", "花开了。")]),
    ],
)  # fmt: skip
def test_markers_are_removed_or_read_as_turns(prompt: str, answer: str, expected: list):
    assert rounds(row(prompt, answer), "alpaca") == expected


def test_markers_whose_place_is_not_certain_make_the_round_faulty():
    assert reason(row("你好", "您好。<|im_end|>再见。"), "alpaca") == "template_markers"
    assert rounds(row("你好", "您好。<|im_end|>再见。"), "alpaca", template_markers=False)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("聊天模板里的<|im_end|>是什么？", "<|im_end|>是一轮结束的标记。"),
        ("写一段Human和Assistant的对话。", "Human: 你好\nAssistant: 您好。"),
        ("怎样用Python去掉结尾的标记？", "```python\ntext.replace('<|im_end|>', '')\n```"),
        ("Markdown怎么写三级标题？", "### 标题"),
    ],
)
def test_text_about_markers_stays(prompt: str, answer: str):
    assert rounds(row(prompt, answer), "alpaca") == [(prompt, answer)]


def test_entities_in_code_are_signs_again():
    code = ["用C写一个循环的代码", "for (i = 0; i &lt; n; i++) printf(&quot;%d&quot;, i);"]
    assert rounds(row(*code), "alpaca")[0][1] == 'for (i = 0; i < n; i++) printf("%d", i);'
    html = '<p title="x">a &lt; b</p>'
    assert without_entities(html, [html]) == html
    assert without_entities("把 &lt; 转义", ["HTML 实体怎么写"]) == "把 &lt; 转义"


def test_a_tag_that_a_sentence_is_about_stays():
    assert without_html('写 <img src="地址"> 就行。') == '写 <img src="地址"> 就行。'
    assert without_html('看<img src="https://a.b/c.png">这里') == "看这里"
    assert without_html("<div><b>粗</b></div>") == "粗"


# 9. Smaller ones


def test_a_refusal_is_one_for_a_prompt_with_information():
    refusal = "很抱歉，我无法提供实时信息。"
    assert reason(row("告诉我今天的交通信息。", refusal), "alpaca") == "refusal"
    assert rounds(row("写一封拒绝邀请的信", "很抱歉，我不能参加您的聚会，也无法提供帮助。"), "alpaca")


def test_nan_is_nothing_and_a_word_that_was_asked_for_is_an_input():
    nan = float("nan")
    assert rounds({"instruction": "讲个故事", "input": nan, "output": ANSWER}, "alpaca")[0][0] == "讲个故事"
    assert reason({"instruction": "讲个故事", "input": "", "output": nan}, "alpaca") == "empty_answer"
    for word in ("无", "None"):
        item = {"instruction": "判断下面这个词的词性：", "input": word, "output": ANSWER}
        assert rounds(item, "alpaca")[0][0] == f"判断下面这个词的词性：\n{word}"
        item = {"instruction": "给出三个建议。", "input": word, "output": ANSWER}
        assert rounds(item, "alpaca")[0][0] == "给出三个建议。"


def test_columns_of_several_schemas_are_read_where_they_are_filled():
    turns = [{"role": None, "content": None, **turn} for turn in PAIR]
    assert rounds({"messages": [], "conversations": turns}, "sharegpt") == [("你好", ANSWER)]


@pytest.mark.parametrize(
    "item", [{"prompt": "问", "chosen": "好", "rejected": "坏"}, {"conversations": PAIR[:1], "chosen": PAIR[1], "rejected": PAIR[1]}]
)  # fmt: skip
def test_preference_pairs_are_named(item: dict):
    format_ = "sharegpt" if "conversations" in item else "prompt_completion"
    assert reason(item, format_) == "preference_pair"


ROWS = [row("问一", ANSWER), row("问二", ANSWER)]
TEXT = json.dumps(ROWS, ensure_ascii=False)
LINES = "\n".join(json.dumps(item, ensure_ascii=False) for item in ROWS)
PRETTY = "\n".join(json.dumps(item, ensure_ascii=False, indent=2) for item in ROWS)


def compressed(kind: str, content: bytes) -> bytes:
    return pyarrow.compress(content, codec=kind, asbytes=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", TEXT.encode()),
        ("rows.jsonl", LINES.encode()),
        ("rows.jsonl", LINES.replace("\n", "\n\ufeff").encode()),
        ("rows.jsonl", PRETTY.encode()),
        ("rows.json", json.dumps({"data": ROWS}).encode()),
        ("rows.json", json.dumps({"version": 1, "data": ROWS}, indent=1).encode()),
        ("rows.json", (" \r\n" * 40000 + TEXT).encode()),
        ("rows.jsonl", ("\n" * 70000 + LINES).encode()),
        ("rows.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("rows.json.zst", compressed("zstd", TEXT.encode())),
        ("rows.jsonl.bz2", __import__("bz2").compress(LINES.encode())),
    ],
)
def test_json_in_every_form(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    assert list(read_items(tmp_path / name)) == ROWS


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_tables(tmp_path: Path, name: str, delimiter: str):
    rows = [{"question": '他说"好"', "answer": "一，\n二。"}, {"question": "3", "answer": "4"}]
    with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        file.write("only one cell\r\n")
    *found, broken = read_items(tmp_path / name)
    assert found == rows and broken.reason == "wrong_number_of_cells"
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert list(read_items(tmp_path / f"{name}.gz"))[:2] == rows


def test_a_folder_of_save_to_disk_is_read_as_datasets_reads_it(tmp_path: Path):
    from datasets import Dataset, load_from_disk

    Dataset.from_list(ROWS * 5).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "saved").rglob("*"))
    files = data_files(paths)
    assert [Path(path).suffix for path in files] == [".arrow"] * 3
    found = [item for path in files for item in read_items(tmp_path / path)]
    assert found == load_from_disk(str(tmp_path / "saved")).to_list()


def test_a_hub_folder_is_its_shards(tmp_path: Path):
    names = ["README.md", ".gitattributes", "LICENSE", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "dataset_infos.json", "build.py"]  # fmt: skip
    assert data_files(names) == names[3:5]
    assert data_files(names, "data/*-00001-*") == names[4:5]
    assert data_files(["README.md"]) == ["README.md"]  # a source that is one file is that file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES.encode()[:-4], "line 2 byte [0-9]+: the file is cut off within a character; fetch it again"),
        (TEXT.encode()[: TEXT.encode().rindex("。".encode()) + 1], "byte [0-9]+: the file is cut off within a character"),
        (gzip.compress(LINES.encode(), mtime=0)[:-20], "damaged or unreadable"),
        (b"\x00\x01", "begins with"),
    ],
)  # fmt: skip
def test_damage_is_one_line(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_items(tmp_path / "f"))


# Layouts


KNOWN = [
    (row("你好", ANSWER), "alpaca"),
    ({"conversations": PAIR}, "sharegpt"),
    ({"conversation": [{"human": "你好", "assistant": ANSWER}]}, "sharegpt"),
    ({"conversation": [{"input": "你好", "output": ANSWER}]}, "sharegpt"),
    (messages(("user", "你好"), ("assistant", ANSWER)), "sharegpt"),
    (messages(("用户", "你好"), ("助手", ANSWER)), "sharegpt"),
    (messages(("prompter", "你好"), ("bot", ANSWER)), "sharegpt"),
    (messages(("Human", "你好"), ("model", ANSWER)), "sharegpt"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "你好"}]}, {"role": "assistant", "content": ANSWER}]}, "sharegpt"),
    ({"messages": json.dumps([{"role": "user", "content": "你好"}, {"role": "assistant", "content": ANSWER}], ensure_ascii=False)}, "sharegpt"),
    ({"messages": {"role": ["user", "assistant"], "content": ["你好", ANSWER]}}, "sharegpt"),
    ({"prompt": "你好", "completion": ANSWER}, "prompt_completion"),
    ({"prompt": [{"role": "user", "content": "你好"}], "completion": [{"role": "assistant", "content": ANSWER}]}, "prompt_completion"),
    ({"query": "你好", "response": ANSWER, "history": []}, "query_response"),
    ({"question": "你好", "answer": ANSWER}, "question_answer"),
    ({"input": "你好", "target": ANSWER}, "input_target"),
    ({"input": "你好", "output": ANSWER, "system": ""}, "input_output"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "format_"), KNOWN)
def test_each_known_layout_is_detected_and_read(item: dict, format_: str):
    if "messages" not in item or not isinstance(item["messages"], str | dict):
        assert detect([item] * 3) == [format_]
    assert rounds(item, format_) == [("你好", ANSWER)]
    assert rounds(item, "auto") == [("你好", ANSWER)]


def cells(item: dict) -> dict:
    """A row as a table has it: lists as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in item.items()}


def written(folder: Path, kind: str, rows: list[dict]) -> None:
    """Rows as files of a kind."""
    text = "\n".join(json.dumps(item, ensure_ascii=False) for item in rows).encode()
    folder.mkdir()
    if kind in ("csv", "tsv"):
        with (folder / f"rows.{kind}").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(map(cells, rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000.parquet")
    elif kind == "save_to_disk":
        from datasets import Dataset

        Dataset.from_list(rows).save_to_disk(str(folder), num_shards=2)
    elif kind == "shards":
        for number, item in enumerate(rows):
            (folder / f"train-{number}.jsonl").write_text(json.dumps(item))
        (folder / "test-0.jsonl").write_text("{}")
    else:
        form = {"json": json.dumps(rows), "data": json.dumps({"data": rows}), "pretty": "".join(json.dumps(item, indent=1) for item in rows)}  # fmt: skip
        packed = {"gz": gzip.compress(text, mtime=0), "zst": compressed("zstd", text)}
        (folder / f"rows.{kind}").write_bytes(packed.get(kind) or form.get(kind, text.decode()).encode())


KINDS = ["json", "data", "jsonl", "pretty", "gz", "zst", "csv", "tsv", "parquet", "save_to_disk", "shards"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("item", "format_"), KNOWN)
def test_each_layout_in_each_kind_of_file(tmp_path: Path, item: dict, format_: str, kind: str):
    if kind in ("csv", "tsv") and (isinstance(item.get("prompt"), list) or isinstance(item.get("messages"), dict)):
        pytest.skip("Arrow's and TRL's forms of turns have none in a table")
    if kind in ("parquet", "save_to_disk") and '"type"' in json.dumps(item):
        pytest.skip("Arrow has one type for every content")
    rows = [item, json.loads(json.dumps(item, ensure_ascii=False).replace("你好", "您好"))]
    written(tmp_path / "own", kind, rows)
    files = sorted(path.relative_to(tmp_path / "own").as_posix() for path in (tmp_path / "own").rglob("*"))
    pattern = "train-*" if kind == "shards" else None
    found = [one for file in data_files(files, pattern) for one in read_items(tmp_path / "own" / file)]
    layout = layout_of("own", "auto", found)
    read = [apply_rules(parse(one, layout), CLEAN).rounds for one in found]
    assert layout.name == format_
    assert [[each[:2] for each in of_row] for of_row in read] == [[("你好", ANSWER)], [("您好", ANSWER)]]


def test_history_stands_in_front():
    item = {"query": "再问", "response": ANSWER, "history": [["问", "好的。"]]}
    assert rounds(item, "query_response") == [("问", "好的。"), ("再问", ANSWER)]


def test_a_detection_never_guesses_between_two():
    item = {"prompt": "问", "completion": "答", "question": "问", "answer": "答"}
    with pytest.raises(
        DataError, match=r"sources.own.format: auto finds prompt_completion and question_answer in rows"
    ):
        layout_of("own", "auto", [item])
    with pytest.raises(DataError, match=r"auto finds no layout in rows with keys q, a; map them by columns"):
        layout_of("own", "auto", [{"q": "问", "a": "答"}])


def test_columns_and_roles_of_a_source(tmp_path: Path):
    rows = [{"Q": "你好", "ctx": "朋友", "A": ANSWER}]
    found = cleaned(tmp_path / "a", rows, columns={"prompt": "Q", "input": "ctx", "answer": "A"})
    assert found.kept[0][0].rounds[0].prompt == "你好\n朋友"
    rows = [{"talk": [{"role": "医生", "content": ANSWER}, {"role": "患者", "content": "你好"}, {"role": "医生", "content": ANSWER}]}]  # fmt: skip
    found = cleaned(tmp_path / "b", rows, columns={"messages": "talk"}, roles={"医生": "assistant", "患者": "user"})
    assert found.kept[0][0].rounds[0][:2] == ("你好", ANSWER)


# Mixing


def test_take_is_a_choice_by_id_and_counted(tmp_path: Path):
    rows = [row(f"第{number}个问题是什么？", f"第{number}个回答在这里，它是{'甲乙丙丁'[number % 4] * (number + 1)}。") for number in range(40)]  # fmt: skip
    few = cleaned(tmp_path / "a", rows, take=5)
    more = cleaned(tmp_path / "b", rows[::-1], take=9)
    ids = [{conversation.id for conversation, _ in found.kept} for found in (few, more)]
    assert len(ids[0]) == 5 and len(ids[1]) == 9 and ids[0] < ids[1]
    own = few.metrics["sources"]["own"]
    assert own["dropped"]["not_taken"] + 5 + own["dropped"].get("near_duplicate", 0) == 40
    assert few.metrics["notes"] == [f"own: 5 of {5 + own['dropped']['not_taken']} rows are taken"]
    share = cleaned(tmp_path / "c", rows, take=0.5)
    assert 0 < len(share.kept) < 40


def test_repeat_is_a_column_and_counted(tmp_path: Path):
    found = cleaned(tmp_path, [row("你好", ANSWER)], repeat=3)
    assert found.metrics["sources"]["own"]["repeat"] == 3
    assert found.metrics["notes"] == ["own: each of 1 rows is trained 3 times an epoch"]
    assert pyarrow.parquet.read_table(tmp_path / "out/conversations.parquet")["repeat"].to_pylist() == [3]


def test_rules_of_one_source(tmp_path: Path):
    rows = [
        row("你是谁", "我是ChatGPT。"),
        row("How are you doing today my friend?", "I am doing very well, thank you."),
    ]
    found = cleaned(tmp_path, rows, clean={"other_models": False, "min_chinese_share": 0.0})
    assert len(found.kept) == 2
    with pytest.raises(ParamsError, match=r"params.yaml: sources.own.clean.other_model: unknown key"):
        overridden(CLEAN, {"other_model": False}, "own")
    with pytest.raises(ParamsError, match=r"compares the rows of all sources; set clean.near_duplicates"):
        overridden(CLEAN, {"near_duplicates": None}, "own")


def test_the_stage_writes_why_each_row_went_where_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = tmp_path / "raw"
    put(raw / "instructions", "own", [row("问", "")])
    for name in ("mmlu", "ceval", "cmmlu"):
        from stand_ins.clean_case import put_benchmarks

        put_benchmarks(raw / "benchmark") if name == "mmlu" else None
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    start, end = text.index("  alpaca_data_zh_51k:"), text.index("  mmlu:")
    entry = "  own:\n    kind: instructions\n    uri: own.json\n    format: alpaca\n    licence: MIT\n"
    (tmp_path / "params.yaml").write_text(text[:start] + entry + text[end:], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["--instructions", "raw/instructions", "--benchmarks", "raw/benchmark", "--out", "clean"])  # fmt: skip
    assert done.exit_code == 1
    table = pyarrow.parquet.read_table(tmp_path / "clean/dropped.parquet")
    assert table["reason"].to_pylist() == ["empty_answer"]
    assert not (tmp_path / "clean/conversations.parquet").exists()


def test_every_known_format_is_a_layout():
    from aurora.sources.source import INSTRUCTION_FORMATS

    assert set(INSTRUCTION_FORMATS) == {"auto", *LAYOUTS}


def test_the_page_has_words_for_every_reason():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "aurora/clean").glob("*.py"))
    named = set(re.findall(r"(?:Drop|Unreadable|Fault)\(\s*(?:[\w +]+, )?\"(\w+)\"", code))
    named |= set(re.findall(r"store\.drop\(.*\"(\w+)\"\)", code))
    assert {"missing_key", "truncated_answer", "not_taken", "wrong_type"} <= named
    assert named <= WORDS.keys()
