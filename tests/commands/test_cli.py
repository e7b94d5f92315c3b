"""The command group: every command is listed in one line, and a mistyped one is answered with the nearest."""

import pytest
from click.testing import CliRunner

from aurora.commands.cli import COMMANDS, main


def test_help_lists_every_command_in_one_line_each():
    shown = CliRunner().invoke(main, ["-h"])
    assert shown.exit_code == 0
    lines = shown.output.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in lines if line.strip()] == list(COMMANDS)


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
