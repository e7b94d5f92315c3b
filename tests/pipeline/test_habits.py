"""The checks of `make check` find what they are for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.minutes
SCRIPTS = Path(sys.executable).parent
PLANTED = """
from aurora.clean.filters import Fault
from aurora.core.files import sha256_file
from aurora.sft.params import Sft


def planted(sft: Sft, fault: Fault | None) -> int:
    sft.lora.rnak
    fault.reason
    sha256_file("a")
    return fault
"""
WORKFLOW_FAULTS = {
    "check-jsonschema --builtin-schema vendor.github-workflows": ("runs-on: ubuntu", "run-on: ubuntu"),
    "zizmor --offline": ("run: .ci/run", "run: echo ${{ github.event.pull_request.title }}"),
}


def test_the_type_checker_finds_a_planted_wrong_attribute(root: Path, tmp_path: Path):
    for name in ("aurora", "stages"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(root / "pyproject.toml", tmp_path / "pyproject.toml")
    planted = tmp_path / "aurora/sft/planted.py"
    planted.write_text(PLANTED)
    command = [SCRIPTS / "pyrefly", "check", "--python-interpreter-path", sys.executable, "--output-format=min-text"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if "planted.py" in line]
    assert [(line.split(":")[1], line.rpartition("[")[2]) for line in lines] == [
        ("8", "missing-attribute]"),
        ("9", "missing-attribute]"),
        ("10", "bad-argument-type]"),
        ("11", "bad-return]"),
    ]


@pytest.mark.parametrize("checker", WORKFLOW_FAULTS)
def test_a_fault_of_the_workflow_is_found(root: Path, tmp_path: Path, checker: str):
    text = (root / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    command, *options = checker.split()
    for number, content in enumerate((text, text.replace(*WORKFLOW_FAULTS[checker], 1))):
        file = tmp_path / "ci.yml"
        file.write_text(content)
        done = subprocess.run([SCRIPTS / command, *options, file], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (number == 0), done.stdout + done.stderr


def test_the_hooks_are_well_formed_and_name_commands_that_are_there(root: Path):
    file = root / ".pre-commit-config.yaml"
    subprocess.run([SCRIPTS / "pre-commit", "validate-config", file], check=True)
    for line in file.read_text(encoding="utf-8").splitlines():
        if "entry: " in line:
            assert (SCRIPTS / Path(line.split()[1]).name).exists()
