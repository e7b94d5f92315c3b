"""The command group: every command is listed in one line, and a mistyped one is answered with the nearest."""

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from aurora.commands.cli import COMMANDS, main


def test_help_lists_every_command_in_one_line_each():
    shown = CliRunner().invoke(main, ["-h"])
    assert shown.exit_code == 0
    lines = shown.output.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in lines if line.strip()] == list(COMMANDS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_h(name: str):
    command = main.get_command(None, name)
    command._help_option = None  # click keeps the one of a test that called the command alone
    shown = CliRunner().invoke(main, [name, "-h"])
    assert shown.exit_code == 0 and shown.output.lower().startswith("usage: ")


@pytest.mark.parametrize(
    ("name", "answer"), [("comapre", "did you mean compare?"), ("xyz", "there are chat, check, compare")]
)
def test_a_command_that_does_not_exist_is_one_line(name: str, answer: str):
    shown = CliRunner().invoke(main, [name])
    assert shown.exit_code == 2 and answer in shown.stderr


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        (["why"], "eval", ["eval", "eval@base", "eval@tuned"]),
        (["check", "--trace"], "sf", ["sft"]),
        (["preview", "--source"], "alpaca_d", ["alpaca_data_zh_51k"]),
        ([], "prev", ["preview"]),
    ],
)
def test_the_shell_completes_commands_stages_and_sources(
    root: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], begun: str, expected: list[str]
):
    monkeypatch.chdir(root)
    found = ShellComplete(main, {}, "aurora", "_AURORA_COMPLETE").get_completions(words, begun)
    assert [item.value for item in found] == expected


def test_completion_outside_a_repository_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    complete = ShellComplete(main, {}, "aurora", "_AURORA_COMPLETE")
    assert complete.get_completions(["why"], "") == complete.get_completions(["preview", "--source"], "") == []
