"""One process at a time, whatever ends the one before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aurora.core.locks import LockedError, locked

HOLD = "import sys, time; from pathlib import Path; from aurora.core.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def hold(path: Path) -> subprocess.Popen:
    """Another process that holds the lock."""
    first = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"held\n"
    return first


def test_a_second_process_is_refused_with_the_first_one_s_id(tmp_path: Path):
    path = tmp_path / "scratch/lock"
    first = hold(path)
    with pytest.raises(LockedError, match=rf"process {first.pid} is working here.*kill {first.pid}$"), locked(path):
        pass
    first.kill()  # which frees the lock, the file left behind or not
    first.wait()
    with locked(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_folder_is_locked_without_a_file_in_it(tmp_path: Path):
    first = hold(tmp_path)
    with pytest.raises(LockedError, match="another process is working here"), locked(tmp_path):
        pass
    first.kill()
    first.wait()
    with locked(tmp_path):
        assert not list(tmp_path.iterdir())


def test_locks_in_turn_do_not_meet(tmp_path: Path):
    for _ in range(2):
        with locked(tmp_path / "lock"):
            pass
