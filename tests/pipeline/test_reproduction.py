"""The small profile, whole: traced, in two clean clones and by force, and killed at random moments."""

import random
import re
import shutil
import sys
from pathlib import Path

import pytest
from stand_ins.clones import DVC, copy_tracked, run

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "benchmarks"))
from kills import Run, torture  # noqa: E402 (a script, which stands beside the package)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    return copy_tracked(root, tmp_path.resolve() / "clone")


def command(folder: Path, *words: str) -> str:
    """What a command prints in a clone, whose own code it runs."""
    return run(folder, *words, PYTHONPATH=str(folder))


def tracked(folder: Path) -> dict[str, bytes]:
    """Bytes of every file that git tracks, dvc.lock and metrics among them."""
    names = command(folder, "git", "ls-files", "-z").split("\0")
    return {name: (folder / name).read_bytes() for name in filter(None, names)}


def test_no_stage_reads_writes_or_connects_beyond_what_it_declares(clone: Path):
    printed = command(clone, sys.executable, "-m", "aurora.commands.cli", "check", "--trace")
    assert "each reads, writes and connects to what it declares, and nothing else" in printed
    assert re.search(r"^\d{2} outputs: the bytes of dvc\.lock$", printed, re.M)


def test_two_clean_clones_and_a_forced_run_end_in_the_same_bytes(clone: Path, root: Path, tmp_path: Path):
    committed = tracked(clone)
    (clone / "dvc.lock").unlink()
    command(clone, DVC, "repro")
    first = tracked(clone)
    assert first == committed
    command(clone, DVC, "repro", "--force")
    assert tracked(clone) == first
    shutil.rmtree(clone)
    second = copy_tracked(root, tmp_path / "elsewhere/second")
    (second / "dvc.lock").unlink()
    command(second, DVC, "repro")
    assert tracked(second) == first


def test_kills_of_dvc_and_of_stages_leave_no_trace(clone: Path):
    (clone / "dvc.lock").unlink()
    assert torture(Run(clone), kills=8, draw=random.Random(1)) == []
