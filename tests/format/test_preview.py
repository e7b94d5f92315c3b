"""What the preview shows: all of the text, and the trained part of it apart."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click import unstyle
from click.testing import CliRunner
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from ruamel.yaml import YAML
from stand_ins.format_case import PARAMS, many, talk, write

from aurora.commands.preview import preview
from aurora.core.page import render
from aurora.format.format import format_rows
from aurora.format.preview import (
    PAGE_ROWS,
    TEMPLATE,
    characters,
    printable,
    shown_row,
    terminal_row,
    tokens,
    write_page,
)
from aurora.prompt.mistral import encode
from aurora.prompt.tokenizer import sentencepiece_processor
from aurora.sources.source import Source

MODEL_FILE = MistralTokenizer._data_path() / "tokenizer.model.v1"
PROCESSOR = sentencepiece_processor(MODEL_FILE)
END = "\x1b[0m"


class Page(HTMLParser):
    """Texts of the `p class=row` of a page, by tag, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[dict[str, str]] = []
        self.heads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag == "p" and ("class", "row") in attributes:
            self.rows.append({"b": "", "i": ""})
        if tag == "h2":
            self.heads.append("")
        if tag not in ("meta", "html"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "html":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "p" in self.open and self.open[-1] in "bi" and self.rows:
            self.rows[-1][self.open[-1]] += data
        if self.open and self.open[-1] == "h2":
            self.heads[-1] += data


def row_of(*turns: str) -> dict:
    ids, labels = encode(PROCESSOR, talk(*turns))
    return {"id": "f00", "source": "a<b", "input_ids": ids, "labels": labels}


def test_tokens_cover_the_ids_and_spell_the_text():
    text = "龘你好🙂\n  x\x00 é"
    parts = list(tokens(PROCESSOR, [1, *PROCESSOR.encode(text), 2]))
    assert [index for _, ids, _ in parts for index in ids] == [1, *PROCESSOR.encode(text), 2]
    assert "".join(part for part, _, control in parts if not control) == " " + text
    assert [part for part, _, control in parts if control] == ["<s>", "</s>"]


def test_bytes_that_spell_nothing_are_shown_as_such():
    assert list(characters("龘".encode()[:2] + b"a\xff")) == [("\ufffd", 1), ("\ufffd", 1), ("a", 1), ("\ufffd", 1)]


def test_the_terminal_shows_trained_text_in_green():
    text = terminal_row(PROCESSOR, row_of("问题", "first", "more", "second\nline"))
    styled = [part.partition(END)[0] for part in text.split("\x1b[3")]
    green = [unstyle(part[2:]) for part in styled if part.startswith("2m")]
    assert green == [" first", "</s>", " second", "line", "</s>"]
    assert unstyle(text).splitlines()[1:] == [
        "<s> [INST] 问题 [/INST] first</s> [INST] more [/INST] second",
        "line</s>",
    ]
    assert unstyle(text).startswith("f00  a<b  ") and " tokens, 6 trained\n" in unstyle(text)


def test_content_cannot_steer_the_terminal():
    text = terminal_row(PROCESSOR, row_of("\x1b[31mred\x07", "\x9b2J\u202eback"))
    assert "␛[31mred␇" in text
    assert r"\u009b2J\u202eback" in text
    assert printable("a\tb\nc") == "a\tb\nc"


def test_the_page_marks_what_is_trained():
    page = Page()
    row = shown_row(PROCESSOR, row_of("<script>alert(1)</script> & 龘", "answer </s> <b>", "再问", "再答"))
    page.feed(render(TEMPLATE, title="Rows", rows=[row], most=1))
    (row,) = page.rows
    assert row["b"] == " answer </s> <b></s> 再答</s>"
    assert row["i"] == "<s> [INST] <script>alert(1)</script> & 龘 [/INST] [INST] 再问 [/INST]"
    assert page.heads == ["a<b "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("format")
    format_rows(write(path / "conversations.parquet", many(80)), MODEL_FILE, path / "rows", PARAMS)
    return path / "rows"


def test_the_page_has_rows_of_each_source_and_the_same_bytes(folder, tmp_path):
    write_page(folder, MODEL_FILE, tmp_path / "one.html")
    write_page(folder, MODEL_FILE, tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    page = Page()
    page.feed((tmp_path / "one.html").read_text())
    assert page.open == []
    assert [head.strip() for head in page.heads] == ["alpaca"] * PAGE_ROWS + ["sharegpt"] * PAGE_ROWS


def test_the_command_shows_rows(folder):
    arguments = ["--rows", str(folder), "--tokenizer", str(MODEL_FILE)]
    shown = CliRunner().invoke(preview, ["2", *arguments, "--source", "sharegpt", "--held-out"])
    assert shown.exit_code == 0
    assert shown.stdout.count("  sharegpt  ") == 2
    assert CliRunner().invoke(preview, arguments).stdout.count(" trained\n") == 3
    missing = CliRunner().invoke(preview, [*arguments, "--source", "nobody"])
    assert missing.exit_code == 1
    assert missing.stderr == f"error: {folder}/train.parquet: no row of source 'nobody'; there are alpaca, sharegpt\n"
    near = CliRunner().invoke(preview, [*arguments, "--source", "sharegbt"])
    assert near.stderr.endswith("no row of source 'sharegbt'; did you mean sharegpt?\n")
    missing = CliRunner().invoke(preview, ["--rows", str(folder / "none")])
    assert "not found; it is written by: dvc repro format" in missing.stderr


def raw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a raw file of a layout that no one names."""
    rows = [
        {"question": "给出三个建议。", "answer": "多运动，多喝水。", "url": "x"},
        {"question": "你是谁？", "answer": "我是ChatGPT。", "url": "y"},
    ]
    (folder / "own").mkdir()
    (folder / "own/README.md").write_text("a card")
    (folder / "own/rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    (folder / "params.yaml").write_bytes((Path(__file__).parents[2] / "params.yaml").read_bytes())
    (folder / "base").mkdir()
    (folder / "base/tokenizer.model").write_bytes(MODEL_FILE.read_bytes())
    monkeypatch.chdir(folder)
    return folder / "own"


def test_a_raw_folder_is_shown_as_it_will_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = raw(tmp_path, monkeypatch)
    shown = CliRunner().invoke(preview, ["own", "--tokenizer", "base"], color=True)
    assert shown.exit_code == 0, shown.output
    text = unstyle(shown.output)
    assert text.startswith(
        "own: question_answer, prompt in question; answer in answer\nnot read: url (2)\nkept 1 of the first 2"
    )
    assert "  other_model 1: row 1: 我是ChatGPT。" in text
    assert "[INST] 给出三个建议。 [/INST] 多运动，多喝水。</s>" in text
    assert "\x1b[32m 多运动" in shown.output
    entry = YAML(typ="safe").load(text[text.index("  own:\n") :])["own"]
    entry["licence"] = "MIT"
    assert Source.model_validate(entry).format == "question_answer"
    assert folder.is_dir()


def test_a_glob_of_shards_is_shown_as_a_folder_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = raw(tmp_path, monkeypatch)
    (folder / "other.jsonl").write_text('{"question": "问", "answer": "答"}')
    shown = CliRunner().invoke(preview, ["own/r*.jsonl"])
    assert shown.exit_code == 0 and "of the first 2 rows" in shown.output
    entry = YAML(typ="safe").load(shown.output[shown.output.index("  own:\n") :])["own"]
    assert (entry["uri"], entry["files"]) == ("own", "r*.jsonl")
    assert "own/x*: no file with rows" in CliRunner().invoke(preview, ["own/x*"]).output


def test_raw_data_that_gives_no_row_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = raw(tmp_path, monkeypatch)
    (folder / "rows.jsonl").write_text('{"q": "问", "a": "答"}')
    shown = CliRunner().invoke(preview, ["own"])
    assert shown.exit_code == 1
    assert "error: sources.own.format: auto finds no layout in rows with keys q, a; map them" in shown.output
    assert "not found; give a number" in CliRunner().invoke(preview, ["nowhere"]).output
    assert "not one of auto, alpaca" in CliRunner().invoke(preview, ["own", "--format", "x"]).output
