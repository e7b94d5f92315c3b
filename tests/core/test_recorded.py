"""Inputs are what dvc.lock records, and finished work is kept until it names the outputs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins.clones import dvc, run

from aurora.core import recorded
from aurora.core.errors import DataError, ResourceError
from aurora.core.files import dvc_hash

pytestmark = pytest.mark.minutes

ROOT = Path(__file__).parent.parent.parent
DVC_YAML = """
stages:
  first:
    cmd: mkdir made && cp given.txt made/a.txt
    deps: [given.txt]
    outs: [made]
  second:
    foreach: {one: {dep: made/a.txt}}
    do:
      cmd: cp made/a.txt result.txt
      deps: ["${item.dep}"]
      outs: [result.txt]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two stages that has run."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"dvc.yaml": DVC_YAML, "given.txt": "a"}.items():
        Path(name).write_text(text)
    run(tmp_path, "git", "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    dvc(tmp_path, "repro", "--quiet")
    monkeypatch.setenv("DVC_STAGE", "second@one")
    recorded.recorded_outs.cache_clear()
    yield tmp_path
    recorded.recorded_outs.cache_clear()


def flip(path: Path) -> None:
    """Flips a bit and keeps size and time; the file may be a read-only link into the cache."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    with os.fdopen(os.open(path, os.O_WRONLY), "wb") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flipped_bit_of_an_input_is_found_that_dvc_takes_for_whole(project: Path, monkeypatch):
    recorded.require_recorded_inputs("second@one")
    path = project / "made/a.txt"
    path.chmod(0o644)
    flip(path)
    assert "up to date" in dvc(project, "status")
    with pytest.raises(
        DataError, match=r"^made: has other bytes than dvc\.lock records for first .*aurora verify.* dvc commit first$"
    ):
        recorded.require_recorded_inputs("second@one")
    recorded.require_recorded_inputs("first")  # does not read it
    monkeypatch.setattr(recorded, "HASHED_ALWAYS", 0)
    recorded.require_recorded_inputs("second@one")  # a large one, of which the stage reads a part
    monkeypatch.setattr(recorded, "HASH_ALL", ("second@one",))
    with pytest.raises(DataError, match=r"^made: has other bytes"):
        recorded.require_recorded_inputs("second@one")
    with pytest.raises(DataError, match=r"^made: has other bytes"):
        recorded.require_recorded(Path("made"), dvc_hash(path.parent))


def test_an_output_that_another_profile_s_stage_recorded_is_whole_too(project: Path):
    """Records of stages that dvc.yaml has no more stay in dvc.lock, also of the path that another stage writes now."""
    lock = Path("dvc.lock")
    old = (
        "  older:\n    cmd: x\n    outs:\n    - path: made\n      hash: md5\n      md5: "
        + "0" * 31
        + "a.dir\n      size: 1\n"
    )
    lock.write_text(lock.read_text().rstrip("\n") + "\n" + old)
    recorded.recorded_outs.cache_clear()
    assert len(recorded.recorded_outs()[Path("made")]) == 2
    recorded.require_recorded_inputs("second@one")


@pytest.mark.parametrize("named", [True, False], ids=["with outputs", "by the work tree"])
def test_scratch_stays_until_the_lock_names_the_outputs(project: Path, monkeypatch, named: bool):
    monkeypatch.setenv("DVC_STAGE", "first")
    scratch = Path(".aurora/sft/0123")
    scratch.mkdir(parents=True)
    (project / "made/a.txt").unlink()
    (project / "made/a.txt").write_text("b")
    recorded.keep_until_recorded(scratch, [Path("made")] if named else [])
    recorded.remove_recorded()
    assert scratch.is_dir()  # DVC has lost it, or has not written dvc.lock yet
    dvc(project, "commit", "--force", "first")
    recorded.recorded_outs.cache_clear()
    recorded.remove_recorded()
    assert not list(scratch.parent.iterdir())


def test_without_dvc_scratch_goes_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (tmp_path / "scratch").mkdir()
    recorded.keep_until_recorded(tmp_path / "scratch")
    assert not list(tmp_path.iterdir())


def test_a_cache_that_takes_no_file_is_found_before_the_hours(project: Path):
    recorded.require_cache(1)
    with pytest.raises(ResourceError, match=r"GiB free, and the outputs take .*dvc gc"):
        recorded.require_cache(2**60)
    dvc(project, "cache", "dir", "--local", str(project / "given.txt"))  # no folder: root may write everywhere
    with pytest.raises(ResourceError, match=r"given\.txt: DVC's cache takes no file"):
        recorded.require_cache()
    dvc(project, "cache", "dir", "--local", "../elsewhere")
    assert recorded.cache_folder().resolve() == project.parent / "elsewhere"


def test_a_stage_stops_at_a_damaged_input(project: Path):
    path = project / "made/a.txt"
    path.chmod(0o644)
    flip(path)
    done = subprocess.run(
        [sys.executable, "-m", "stages.format", "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: made: has other bytes") and done.stderr.count("\n") == 1
