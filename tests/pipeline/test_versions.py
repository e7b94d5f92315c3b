"""pyproject.toml is the one source of versions: what follows it is written by `make lock` and held by `aurora check`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from stand_ins.clones import run

from aurora.pipeline.rooms import SOURCE_BUILDERS
from aurora.pipeline.versions import version_faults, write_versions

STAGE = {"cmd": "python -m stages.work", "deps": [], "params": [{"versions.yaml": ["data"]}]}
SOUND = {
    "dvc.yaml": json.dumps({"stages": {"work": STAGE}}),
    "stages/work.py": "import aurora.one\n",
    "stages/__init__.py": "",
    "aurora/__init__.py": "",
    "aurora/one.py": "import click\nimport numpy\nfrom json import dumps\n",
    "versions.yaml": "# why\ndata:\n  numpy: '1.0' # optional\n",
    "constraints.txt": "# by make lock\nnumpy==1.0+cpu ; python_full_version < '3.15'\nother==3\n",
    "pyproject.toml": "[project]\ndependencies = ['Numpy==1.0', 'other==3']\n",
}
CASES = {
    "an import without its version": (
        {"aurora/one.py": "import numpy\nimport trl\n"},
        "dvc.yaml: work: version of trl is missing, imported by {root}/aurora/one.py; add it",
    ),
    "a version of nothing": (
        {"aurora/one.py": "import click\n"},
        "dvc.yaml: work: version of numpy is listed, but nothing there imports or brings it; take it out",
    ),
    "one that an imported library needs": (
        {"aurora/one.py": "import pandas\n"},
        "dvc.yaml: work: version of pandas is missing, imported by {root}/aurora/one.py; add it",
    ),
    "another pin of pip's": (
        {"constraints.txt": "numpy==2.0\nother==3\n"},
        "constraints.txt: numpy is 2.0, but 1.0 in pyproject.toml; run make lock",
    ),
    "no pin of pip's": (
        {"constraints.txt": "numpy==1.0\n"},
        "constraints.txt: other is absent, but 3 in pyproject.toml; run make lock",
    ),
    "another pin of the project": (
        {"pyproject.toml": "[project]\ndependencies = ['numpy==2.0', 'other==3']\n"},
        "versions.yaml: numpy is 1.0, but 2.0 in pyproject.toml; run make lock",
    ),
    "a dependency without a pin": (
        {"pyproject.toml": "[project]\ndependencies = ['numpy==1.0', 'other>=2']\n"},
        "pyproject.toml: other has no one version; pin it as other==3",
    ),
    "a library that the project does not name": (
        {"pyproject.toml": "[project]\ndependencies = ['other==3']\n"},
        "versions.yaml: numpy is not among the dependencies of pyproject.toml; add it there, then run make lock",
    ),
    "a group that no stage declares": (
        {"versions.yaml": "data: {numpy: '1.0'}\nmore: {other: '3'}\n"},
        "versions.yaml: group more is declared by no stage; remove it",
    ),
    "a declared group that is not there": (
        {"versions.yaml": "more: {numpy: '1.0'}\n"},
        "dvc.yaml: work: versions.yaml has no group data; there are more",
    ),
    "another version where a source is made": (
        {"aurora/small_base/versions.yaml": "numpy: '9'\n", "aurora/small_base/__init__.py": "import numpy\n"},
        "aurora/small_base/versions.yaml: numpy is 9, but 1.0 in pyproject.toml; run make lock",
    ),
}


def write(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A repository of one stage that tracks one library."""
    for folder in SOURCE_BUILDERS:
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path, SOUND)
    return tmp_path


@pytest.mark.parametrize(("files", "message"), CASES.values(), ids=CASES)
def test_versions_are_tracked_where_they_count(sound: Path, files: dict[str, str], message: str):
    assert version_faults(sound) == []
    write(sound, files)
    assert message.format(root=sound) in version_faults(sound)


def test_the_lock_writes_versions_alone(sound: Path):
    write(sound, {"aurora/hub/versions.yaml": "numpy: &of 0.1\n", "aurora/hub/a.py": "import numpy\n"})
    write(sound, {"pyproject.toml": "[project]\ndependencies = ['numpy==2.0.1', 'other==3']\n"})
    write_versions(sound)
    assert (sound / "versions.yaml").read_text() == '# why\ndata:\n  numpy: "2.0.1" # optional\n'
    assert (sound / "aurora/hub/versions.yaml").read_text() == 'numpy: &of "2.0.1"\n'
    assert version_faults(sound) == ["constraints.txt: numpy is 1.0, but 2.0.1 in pyproject.toml; run make lock"]


def test_the_versions_of_this_repository_are_those_of_its_stages(root: Path):
    assert version_faults(root) == []


def test_the_lock_of_this_repository_has_nothing_to_write(root: Path, tmp_path: Path):
    names = ["pyproject.toml", "versions.yaml", *(f"{name}/versions.yaml" for name in SOURCE_BUILDERS)]
    before = {name: (root / name).read_bytes() for name in names if (root / name).is_file()}
    for name, content in before.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_versions(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_pin_each_distribution_once_for_each_python(root: Path, python: str):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    active = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    names = [canonicalize_name(pin.name) for pin in active]
    assert len(names) == len(set(names)) > 100
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in active)


@pytest.mark.minutes
def test_a_wheel_has_every_file_that_the_code_reads(root: Path, tmp_path: Path):
    """Packages and their data are found: what git tracks in them is in the wheel, and nothing else."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    tracked = set(run(root, "git", "ls-files", *packages).split())
    for name in (*tracked, "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, tmp_path / name)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_wheel('.'))"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == tracked
