"""A stage stops where another version is installed than the one that DVC tracks."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from aurora.core.declared import require_versions
from aurora.core.errors import ParamsError, ResourceError

ROOT = Path(__file__).parent.parent.parent
DVC_YAML = "stages:\n  sft: {cmd: x, params: [sft, {versions.yaml: [data, training]}]}\n  fetch: {cmd: x}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "sft")
    Path("dvc.yaml").write_text(DVC_YAML)
    Path("versions.yaml").write_text(
        f"data: {{numpy: '{version('numpy')}'}}\ntraining: {{trl: '{version('trl')}'}}\nmodel: {{torch: '1.0'}}\n"
    )
    return tmp_path


def test_the_tracked_versions_pass_and_those_of_other_stages_are_not_asked_for(folder: Path):
    require_versions()


def test_another_version_is_one_line_with_both_remedies(folder: Path, monkeypatch: pytest.MonkeyPatch):
    text = Path("versions.yaml").read_text()
    Path("versions.yaml").write_text(text.replace(version("trl"), "1.15.9"))
    found = version("trl")
    message = (
        rf"^sft: trl {found} is installed, but versions\.yaml tracks 1\.15\.9; pip install trl==1\.15\.9, or track "
        rf"{found} there and let DVC run what it changes$"
    )
    with pytest.raises(ResourceError, match=message):
        require_versions()
    Path("versions.yaml").write_text(text.replace("training", "drilling"))
    with pytest.raises(
        ParamsError, match=r"^versions\.yaml: group training is missing, which stage sft declares; restore"
    ):
        require_versions()
    monkeypatch.delenv("DVC_STAGE")
    require_versions()  # by hand there is no lock file that could be wrong


def test_an_extra_may_be_absent_but_not_of_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch):
    Path("versions.yaml").write_text(f"data: {{numpy: '{version('numpy')}'}}\ntraining: {{torchao: '0.18.0'}}\n")
    have = {"numpy": version("numpy")}
    monkeypatch.setattr("aurora.core.declared.installed", lambda name: have.get(name, "none"))
    require_versions()
    have["torchao"] = "0.17.0"
    with pytest.raises(ResourceError, match=r"^sft: torchao 0\.17\.0 is installed, but versions\.yaml tracks"):
        require_versions()


def test_the_code_that_makes_a_source_has_versions_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_STAGE", "fetch")
    (folder / "made").mkdir()
    require_versions(Path("made"))
    (folder / "made/versions.yaml").write_text("torch: '1.0'\n")
    with pytest.raises(
        ResourceError, match=r"^fetch: torch .* made/versions\.yaml tracks 1\.0; pip install torch==1\.0"
    ):
        require_versions(Path("made"))


def test_a_stage_stops_before_it_imports_anything(folder: Path):
    Path("versions.yaml").write_text("data: {numpy: '0.1'}\ntraining: {trl: '0.1'}\n")
    done = subprocess.run(
        [sys.executable, "-m", "stages.sft", "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: sft: numpy ") and done.stderr.count("\n") == 1
