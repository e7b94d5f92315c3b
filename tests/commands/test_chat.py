"""`aurora chat`: several rounds in the prompt of the training, commands, faulty input, and two models side by side."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML
from stand_ins.tiny_mixtral import DENSE, write_model

from aurora.commands.chat import Session, printable, side_by_side, typed_lines, wrapped
from aurora.commands.cli import main
from aurora.core.errors import AuroraError
from aurora.serving.chat_model import Answer, ChatModel, Sampling
from aurora.serving.places import find_model

ROOT = Path(__file__).parent.parent.parent
HELLO = [{"role": "user", "content": "你好"}]
READY = b"\x1b[?2004h"  # prompt_toolkit waits for a line


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_model(folder / "data/raw/model/base")
    write_model(folder / "models/merged", seed=1)
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["quantization"] = DENSE.model_dump()
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    return folder


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


@pytest.fixture(scope="module")
def models(project: Path) -> dict[str, ChatModel]:
    names = {"base": "data/raw/model/base", "tuned": "models/merged"}
    return {name: ChatModel.load(find_model(str(project / folder)), DENSE, "mistral") for name, folder in names.items()}


def reply(model: ChatModel, messages: list[dict], tokens: int = 6) -> str:
    answer = Answer(0)
    list(model.answer(model.prompt(messages), Sampling(max_tokens=tokens), answer))
    return answer.text


def talk(*lines: str | bytes, models: tuple[str, ...] = ()):
    given = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n"
    return CliRunner().invoke(main, ["chat", *models, "--max-new-tokens", "6"], input=given)


def test_each_round_sees_the_ones_before_until_reset(models):
    first = reply(models["tuned"], HELLO)
    second = reply(
        models["tuned"], [*HELLO, {"role": "assistant", "content": first}, {"role": "user", "content": "你是谁？"}]
    )
    done = talk("你好", "", "你是谁？", "/reset", "你好")
    assert done.exit_code == 0, done.output
    shown = [printable(text) for text in (first, second, "new conversation", first)]
    assert done.stdout == "\n".join(shown) + "\n"


def test_a_line_of_broken_utf8_or_beyond_the_context_is_one_line_and_the_conversation_stays(models):
    first = reply(models["tuned"], HELLO)
    second = reply(
        models["tuned"], [*HELLO, {"role": "assistant", "content": first}, {"role": "user", "content": "再见"}]
    )
    done = talk("你好", b"\xe4\xbd", "好" * 5000, "/nonsense", "再见")
    assert done.exit_code == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [error.split(";")[0].split(" (")[0] for error in errors] == [
        "error: line 2 of the input is not UTF-8",
        "error: the chat has 5,027 tokens, and the context of this model 4,096",
        "error: /nonsense: no such command",
    ]
    assert done.stdout == f"{printable(first)}\n{printable(second)}\n"


def test_a_folder_without_a_model_or_an_adapter_without_its_base_is_one_line(tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    Path("data/raw/model/base").rename(tmp_path / "away")
    try:
        for name, said in {
            "nowhere": "nowhere: no such folder; give base, tuned, adapter, or a folder",
            "adapter": "models/adapter: no such folder; it is written by: dvc repro sft",
            "base": "data/raw/model/base: no such folder; it is written by: dvc repro --glob 'fetch*@base'",
            str(tmp_path / "adapter"): "an adapter, and its base is not at data/raw/model/base",
            "samples": "samples: no such folder",
        }.items():
            done = talk("你好", models=(name,))
            assert done.exit_code == 1
            assert said in done.stderr and done.stderr.count("\n") == 1
    finally:
        (tmp_path / "away").rename("data/raw/model/base")


class Shown:
    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text += text


@pytest.fixture
def session(models) -> Session:
    return Session([models["tuned"]], Sampling(max_tokens=6), Shown())


def test_regenerate_answers_again_and_a_temperature_makes_it_another_answer(session: Session):
    session.take("你好")
    greedy = session.conversations[0].messages
    session.take("/regenerate")
    assert session.conversations[0].messages == greedy
    session.take("/sampling temperature=2 seed=1")
    session.take("/regenerate")
    assert session.conversations[0].messages != greedy and len(session.conversations[0].messages) == 2


def test_sampling_is_stated_and_off_by_default(session: Session):
    session.take("/sampling")
    assert session.show.text.startswith("temperature=0.0 top_p=1.0 seed=0 max_tokens=6 (greedy")
    session.take("/sampling temperature=0.7 max_tokens=3")
    assert (session.sampling.temperature, session.sampling.max_tokens) == (0.7, 3)
    for wrong in ("temperature=9", "top_p=nan", "x=1", "seed=1.5", "max_tokens="):
        with pytest.raises(AuroraError, match=r"^/sampling: "):
            session.take(f"/sampling {wrong}")


def test_save_appends_conversations_that_clean_reads(session: Session, tmp_path: Path):
    from aurora.clean.layouts import LAYOUTS
    from aurora.clean.parse_rows import parse

    session.take("你好")
    for _ in range(2):
        session.take(f"/save {tmp_path}/chats.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["messages"] for row in rows] == [session.conversations[0].messages] * 2
    parsed = parse(rows[0], LAYOUTS["messages"])
    assert [(turn.role, turn.content) for turn in parsed.messages] == [
        (message["role"], message["content"]) for message in session.conversations[0].messages
    ]
    with pytest.raises(AuroraError, match="cannot be written"):
        session.take("/save /proc/nothing/here")


def test_a_stopped_answer_is_kept_as_far_as_it_came(session: Session, monkeypatch: pytest.MonkeyPatch):
    def interrupted(ids, sampling, answer):
        for piece in ("好", "的"):
            answer.text += piece
            yield piece
        raise KeyboardInterrupt

    monkeypatch.setattr(session.conversations[0].model, "answer", interrupted)
    session.take("你好")
    assert session.show.text == "好的 [stopped]\n"
    assert session.conversations[0].messages[-1] == {"role": "assistant", "content": "好的"}


def test_two_models_answer_side_by_side(models):
    done = talk("你好", models=("base", "tuned"))
    assert done.exit_code == 0, done.output
    lines = [line.split(" │ ") for line in done.stdout.splitlines() if " │" in line]
    assert [cell.strip() for cell in lines[0]] == ["base", "tuned"]
    columns = ["".join(cells).replace(" ", "") for cells in zip(*[(*line, "")[:2] for line in lines[1:]], strict=True)]
    wanted = [printable(reply(models[name], HELLO)).replace(" ", "").replace("\n", "") for name in ("base", "tuned")]
    assert columns == wanted


def test_columns_are_as_wide_for_chinese_as_for_english():
    from prompt_toolkit.utils import get_cwidth

    texts = (["你好，", "世界" * 9, "\nab"], ["hello ", "x" * 30])
    lines = "".join(side_by_side(["base", "tuned"], [iter(text) for text in texts], 23)).splitlines()
    left, right = zip(*[line.split(" │") if " │" in line else (line, "") for line in lines], strict=True)
    assert {get_cwidth(cell) for cell, other in zip(left, right, strict=True) if other} == {10}
    assert "".join(left).replace(" ", "") == "base你好，" + "世界" * 9 + "ab"
    assert "".join(right).replace(" ", "") == "tunedhello" + "x" * 30
    assert all(get_cwidth(line) <= 23 for line in lines)
    assert wrapped("你好吗", 5) == ["你好", "吗"]


def test_a_terminal_gets_no_control_characters():
    assert printable("a\x1b[31mb\x07\u202e\n好　x\t") == "a[31mb\n好　x\t"


def test_typing_multi_line_history_and_half_a_character():
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        lines = typed_lines()
        pipe.send_bytes("第一行\x1b\r第二行\r".encode())
        assert next(lines) == "第一行\n第二行"
        pipe.send_bytes(b"\x1b[A\r")  # arrow up
        assert next(lines) == "第一行\n第二行"
        pipe.send_bytes(b"\xe4\xbd\r")
        broken = next(lines)
        with pytest.raises(UnicodeEncodeError):
            broken.encode()
        pipe.send_bytes(b"\x03\x04")  # Ctrl-C empties the line, Ctrl-D ends
        assert list(lines) == []


@pytest.mark.minutes
def test_ctrl_c_in_a_terminal_ends_the_answer_and_not_the_session(project: Path):
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "aurora.commands.cli", "chat", "--max-new-tokens", "4000"]
    running = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=project, env=environment, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(mark: bytes, seconds: float = 90) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while mark not in seen:
            assert time.monotonic() < end, seen.decode(errors="replace")
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 65536)
        seen = seen.partition(mark)[2]

    try:
        until(b"/help lists the commands")
        until(READY)
        os.write(ours, "写一首很长的诗\r".encode())
        until(b"\x1b[?2004l")  # the line is taken
        time.sleep(0.5)
        os.write(ours, b"\x03")
        until(b"[stopped]")
        until(READY)
        os.write(ours, b"/sampling\r")
        until(b"greedy: temperature 0")
        until(READY)
        os.write(ours, b"\x04")
        assert running.wait(timeout=30) == 0
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
        os.close(ours)
