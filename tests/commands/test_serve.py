"""`aurora serve` as a process: where it listens, what it serves, and mistakes in one line."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from stand_ins.finished_project import write_project

from aurora.commands.cli import main

pytestmark = pytest.mark.minutes

openai = pytest.importorskip("openai", reason="the openai client is not installed")
pytest.importorskip("uvicorn", reason="pip install -e '.[serve]'")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("served"))


def test_base_and_tuned_are_served_at_the_address_that_it_says(project: Path):
    command = [sys.executable, "-m", "aurora.commands.cli", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        said = next((line for line in running.stderr if line.startswith("serving ")), "")
        found = re.search(r"serving base, tuned at (http://127\.0\.0\.1:\d+) .*not for the open internet", said)
        assert found, said
        with openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none", timeout=60) as client:
            assert [model.id for model in client.models.list()] == ["base", "tuned"]
            for name in ("base", "tuned"):
                chat = [{"role": "user", "content": "你好"}]
                answer = client.chat.completions.create(model=name, messages=chat, max_tokens=3)
                assert answer.usage.completion_tokens == 3
        running.send_signal(signal.SIGINT)
        running.wait(timeout=30)
        assert "Traceback" not in running.stderr.read()
    finally:
        running.kill()


def test_mistakes_are_one_line_before_a_model_is_loaded(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("AURORA_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in {
            ("--port", port): f"127.0.0.1 port {port}: Address already in use; give another by --port or --host",
            ("--host", "203.0.113.1", "--port", "0"): "203.0.113.1 port 0: ",
            ("--api-key",): "--api-key: AURORA_API_KEY is not set",
            ("nowhere",): "nowhere: no such folder; give base, tuned, adapter, or a folder",
            ("tuned", "models/../models/merged", "models/merged"): "two models of one name",
        }.items():
            done = CliRunner().invoke(main, ["serve", *arguments])
            assert done.exit_code == 1 and said in done.stderr, done.output
            assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
