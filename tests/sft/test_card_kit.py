"""The kit of a card's first minutes runs from end to end on a small shape, and says what it leaves out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_kit_measures_trains_twice_alike_and_ends():
    command = [sys.executable, "-W", "ignore", "benchmarks/mixtral_gpu.py", "--tiny"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "failed" not in done.stdout
    for line in ("NF4: bits of a CPU: True", "a second run gives the same bytes: True", "peers: not compared"):
        assert line in done.stdout
    for step in ("train: ", "train packed: ", "decode 1: ", "done in "):
        assert f"\n{step}" in done.stdout
