"""One training at a time, and no orphan of a command that was killed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurora.errors import ResourceError
from aurora.sft.single_run import single_run

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"} | {
    "PYTHONPATH": str(ROOT)
}
HOLD = "import sys, time; from pathlib import Path; from aurora.sft.single_run import single_run\n"
HOLD += "with single_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_second_run_is_refused_with_the_first_one_s_process_id(tmp_path: Path):
    lock = tmp_path / "scratch/lock"
    first = subprocess.Popen([sys.executable, "-c", HOLD, lock], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"held\n"
    with (
        pytest.raises(ResourceError, match=rf"process {first.pid} is training.*kill {first.pid}$"),
        single_run(lock),
    ):
        pass
    first.kill()  # which frees the lock, the file left behind or not
    first.wait()
    with single_run(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_runs_in_turn_are_none_of_each_other_s_business(tmp_path: Path):
    for _ in range(2):
        with single_run(tmp_path / "lock"):
            pass


CHILD = "import os, time; from aurora import lifetime; lifetime.{}(); print(os.getpid(), flush=True); time.sleep(60)"
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
        [sys.executable, "-c", PARENT, *command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        start_new_session=True,
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
from aurora import lifetime
lifetime.end_with_dvc()
print("alive")
"""


@pytest.mark.parametrize(("holder", "lives"), [(os.getpid(), True), (2**22 + 1, False), (None, True)])
def test_a_stage_whose_dvc_was_killed_before_it_could_look_ends(
    tmp_path: Path, holder: int | None, lives: bool
):
    """Its parent is gone, and DVC's own note says which process has started it."""
    if holder:
        (tmp_path / ".dvc/tmp").mkdir(parents=True)
        note = {"pid": holder, "cmd": "dvc repro"}
        content = {"read": {"a": [note]}, "write": {"b": note}}
        (tmp_path / ".dvc/tmp/rwlock").write_text(json.dumps(content))
    start = (
        "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    )
    environment = ENVIRONMENT | {"DVC_STAGE": "sft"}
    done = subprocess.run(
        [sys.executable, "-c", start, ORPHAN],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ("alive\n" if lives else "")


def alive(process: int) -> bool:
    """Whether the process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_without_dvc_a_run_may_outlive_its_shell():
    code = "from aurora.lifetime import end_with_dvc; import threading; end_with_dvc(); print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
