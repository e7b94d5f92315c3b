"""Parsers of the published formats, and the one clear line for files that are none of them."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from aurora.clean.apply_rules import apply_rules
from aurora.clean.layouts import LAYOUTS
from aurora.clean.parse_rows import Drop, parse
from aurora.clean.read_files import read_items
from aurora.core.errors import DataError
from aurora.pipeline.params import load_params

CLEAN = load_params(Path(__file__).parent.parent.parent / "profiles/paper.yaml").clean


def contents(item: object, format_: str = "alpaca") -> list[tuple[str, str]]:
    turns = parse(item, LAYOUTS[format_])
    assert not isinstance(turns, Drop), turns
    return [(message.role, message.content) for message in turns.messages]


def reason(item: object, format_: str = "alpaca") -> str:
    turns = parse(item, LAYOUTS[format_])
    assert isinstance(turns, Drop), turns
    return turns.reason


def test_alpaca_joins_instruction_and_input_by_a_line_end():
    row = {"instruction": "翻译", "input": "hello", "output": "你好"}
    assert contents(row) == [("user", "翻译\nhello"), ("assistant", "你好")]
    assert contents(row | {"input": ""})[0] == ("user", "翻译")


def test_null_is_no_text():
    assert contents({"instruction": "a", "input": None, "output": None}) == [("user", "a"), ("assistant", "")]
    assert "None" not in str(contents({"conversation": [{"human": None, "assistant": None}]}, "sharegpt"))


@pytest.mark.parametrize(
    "marker", ["<noinput>", "无输入。", "<无输入>", '"<noinput>"', "<noinput>.", "不需要输入。", "<没有输入>", "N/A"]
)
def test_a_no_input_marker_is_no_input(marker: str):
    turns = parse({"instruction": "讲个故事", "input": marker, "output": "从前"}, LAYOUTS["alpaca"])
    assert turns.messages[0].content == "讲个故事"
    assert turns.repaired == ("no_input_marker",)


def test_translated_keys_are_repaired_and_named():
    turns = parse({"指示": "写", "输入": "", "输出": "好"}, LAYOUTS["alpaca"])
    assert [message.content for message in turns.messages] == ["写", "好"]
    assert turns.repaired == ("key_translated",)
    assert contents({"instruction": "写", "input": "", "output": "", "输出": "好"})[1] == ("assistant", "好")


def test_what_is_not_certain_is_dropped_with_its_reason():
    row = {"instruction": "写", "input": "", "output": "好"}
    assert reason(row | {"输出": "坏"}) == "conflicting_keys"
    assert reason({"instruction": "写"}) == "missing_key"
    assert reason(row | {"output": ["好"]}) == "wrong_type"
    assert reason(row | {"output": True}) == "wrong_type"
    assert reason(row | {"output": float("inf")}) == "wrong_type"
    assert reason(["写", "好"]) == "not_an_object"
    assert reason({"messages": [{"role": "narrator", "content": "x"}]}, "messages") == "unknown_role"
    assert reason({"messages": "x"}, "messages") == "missing_key"
    assert reason({"messages": ["x"]}, "messages") == "not_an_object"


def test_numbers_become_text_and_are_named():
    turns = parse({"instruction": "6乘7", "input": "", "output": 42}, LAYOUTS["alpaca"])
    assert turns.messages[1].content == "42"
    assert turns.repaired == ("number_to_text",)


def test_sharegpt_messages_and_from_value_are_the_same_conversation():
    expected = [("user", "问"), ("assistant", "答")]
    assert contents({"conversation": [{"human": "问", "assistant": "答"}]}, "sharegpt") == expected
    turns = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
    assert contents({"conversations": [{"from": "system", "value": ""}, *turns]}, "sharegpt") == expected
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    assert contents({"messages": turns}, "messages") == expected


def test_a_system_turn_is_read_as_one():
    turns = [{"role": "system", "content": "简短。"}, {"role": "user", "content": "问"}]
    assert contents({"messages": turns}, "messages") == [("system", "简短。"), ("user", "问")]


ROWS = [{"instruction": "一", "input": "", "output": "1"}, {"instruction": "二", "input": None, "output": "2"}]


def test_list_lines_and_parquet_give_the_same_rows(tmp_path: Path):
    text = json.dumps(ROWS, ensure_ascii=False)
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf" + text.replace(",", ",\r\n").encode())
    (tmp_path / "lines").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(map(json.dumps, ROWS)).encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "parquet")
    for name in ("list", "lines", "parquet"):
        assert list(read_items(tmp_path / name)) == ROWS


@pytest.mark.parametrize(
    ("row", "format_"),
    [
        ({"instruction": "翻译", "input": "hello", "output": "你好", "history": [["问", "答"]]}, "alpaca"),
        ({"conversation_id": "1", "conversation": [{"human": "问", "assistant": "答"}, {"human": "问", "assistant": None}]}, "sharegpt"),
        ({"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, "sharegpt"),
        ({"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}, "messages"),
    ],
)  # fmt: skip
def test_each_format_in_parquet_is_what_it_is_in_json(row: dict, format_: str, tmp_path: Path):
    """Parquet gives every row all columns and every turn all fields, empty ones as null."""
    other = {"instruction": None, "note": "x", "messages": None} | dict.fromkeys(row)
    for name, writer in (("plain", {}), ("large", {"row_group_size": 1, "compression": "gzip"})):
        table = pyarrow.Table.from_pylist([{**other, **row}, other])
        pyarrow.parquet.write_table(table, tmp_path / name, **writer)
        first, second = read_items(tmp_path / name)
        assert parse(first, LAYOUTS[format_]) == parse(row, LAYOUTS[format_])
        assert apply_rules(parse(second, LAYOUTS[format_]), CLEAN).drop.reason in (
            "missing_key",
            "empty_answer",
            "empty_prompt",
        )


def test_parquet_of_other_types_loses_no_row(tmp_path: Path):
    table = pyarrow.table({"instruction": pyarrow.array([b"\xff\xfe", b"x"]), "output": pyarrow.array([1.5, None])})
    pyarrow.parquet.write_table(table, tmp_path / "f")
    assert [reason(item) for item in read_items(tmp_path / "f")] == ["wrong_type", "wrong_type"]
    (tmp_path / "cut").write_bytes((tmp_path / "f").read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged or unreadable"):
        list(read_items(tmp_path / "cut"))


def test_repeated_keys_are_dropped_if_they_differ(tmp_path: Path):
    (tmp_path / "f").write_text('{"instruction": "a", "output": "x", "output": "y"}\n{"a": 1, "a": 1}')
    first, second = read_items(tmp_path / "f")
    assert reason(first) == "repeated_key"
    assert second == {"a": 1} and type(second) is dict


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"<html>", "no JSON, JSON lines"),
        (b'[{"a": 1}, {"a": ', r"row 1 \(line 1 column \d+\): not JSON"),
        (b'[{"a": 1}', "cut off or broken behind row 0"),
        (b'[{"a": 1}] trailing', "text behind the end"),
        (b'[{"a": "\xff"}]', "byte 8: not UTF-8"),
        (b'{"a": 1}\n{"a": \n', "line 2 column 6: not JSON"),
        (b'{"a": 1}\n\xff\n', "line 2 byte 0: not UTF-8"),
        (b"PAR1 and nothing more", "damaged or unreadable"),
        (b"[" * 100000, "nested too deeply|not JSON"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_place_and_remedy(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_items(tmp_path / "f"))
    assert str(tmp_path / "f") in str(caught.value)


def test_a_deeply_nested_line_is_dropped(tmp_path: Path):
    (tmp_path / "f").write_text('{"a": 1}\n{"a": ' + "[" * 50000 + "]" * 50000 + "}\n")
    assert [reason(item) for item in read_items(tmp_path / "f")] == ["missing_key", "nested_too_deeply"]
