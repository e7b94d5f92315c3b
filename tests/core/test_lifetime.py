"""No stage outlives the command that started it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_ins.processes import alive

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"} | {"PYTHONPATH": str(ROOT)}
CHILD = (
    "import os, time; from aurora.core import lifetime; lifetime.{}(); print(os.getpid(), flush=True); time.sleep(60)"
)
# As DVC does: the variable is the command's alone.
PARENT = "import os, subprocess, sys; subprocess.run(sys.argv[1:], env=os.environ | {'DVC_STAGE': 'sft'})"


@pytest.mark.parametrize(
    ("function", "shell"),
    [("end_with_parent", None), ("end_with_dvc", ""), ("end_with_dvc", "; true")],
    ids=["launcher", "dvc", "dvc and a shell that stays"],
)
def test_a_process_ends_with_the_one_that_started_it(function: str, shell: str | None):
    command = [sys.executable, "-c", CHILD.format(function)]
    if shell is not None:
        command = ["/bin/sh", "-c", shlex.join(command) + shell]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *command], env=ENVIRONMENT, stdout=subprocess.PIPE, start_new_session=True
    )
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        for _ in range(500):
            if not alive(child):
                return
            time.sleep(0.01)
        pytest.fail(f"process {child} outlived the one that started it by 5 s")
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if alive(child) else None


ORPHAN = """
import os, sys, time
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
from aurora.core import lifetime
lifetime.end_with_dvc()
print("alive")
"""


@pytest.mark.parametrize(
    ("holder", "lives"),
    [(os.getpid(), True), (2**22 + 1, False), (None, True)],
    ids=["it lives", "it is gone", "no note"],
)
def test_a_stage_whose_dvc_was_killed_before_it_could_look_ends(tmp_path: Path, holder: int | None, lives: bool):
    """Its parent is gone, and DVC's own note says which process has started it."""
    if holder:
        (tmp_path / ".dvc/tmp").mkdir(parents=True)
        note = {"pid": holder, "cmd": "dvc repro"}
        content = {"read": {"a": [note]}, "write": {"b": note}}
        (tmp_path / ".dvc/tmp/rwlock").write_text(json.dumps(content))
    start = "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    environment = ENVIRONMENT | {"DVC_STAGE": "sft"}
    done = subprocess.run(
        [sys.executable, "-c", start, ORPHAN], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ("alive\n" if lives else "")


def test_without_dvc_a_run_may_outlive_its_shell():
    code = "from aurora.core.lifetime import end_with_dvc; import threading; end_with_dvc(); print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
