"""dvc.yaml says all: each stage lists every module it imports, no other, and every path and parameter it reads."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from aurora.pipeline.params import Params, load_params
from aurora.pipeline.rooms import SOURCE_BUILDERS, faults, imported
from aurora.pipeline.versions import version_faults

ROOT = Path(__file__).parent.parent.parent
DVC_YAML = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))


def body(stage: str) -> dict:
    entry = DVC_YAML["stages"][stage]
    return entry.get("do", entry)


def test_every_imported_module_is_declared_and_no_other():
    assert faults(ROOT) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one stage that imports aurora/one.py, which imports aurora/two.py, late."""
    for name, text in {
        "stages/__init__.py": "",
        "aurora/__init__.py": "",
        "stages/work.py": "from aurora.one import run\n",
        "aurora/one.py": "def run():\n    import aurora.two\n",
        "aurora/two.py": "",
        "aurora/three.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("left_out", "added", "message"),
    [
        (None, None, None),
        ("aurora/two.py", None, "work: aurora/two.py is missing, imported by aurora/one.py; add it to deps"),
        ("stages/__init__.py", None, "work: stages/__init__.py is missing, imported by python -m; add it"),
        (
            None,
            "aurora/three.py",
            "work: aurora/three.py is listed, but nothing there imports it; take it out",
        ),
    ],
)
def test_a_wrong_list_of_modules_is_said(small: Path, left_out: str, added: str, message: str):
    deps = ["stages/work.py", "stages/__init__.py", "aurora/__init__.py", "aurora/one.py", "aurora/two.py"]
    deps = [dep for dep in [*deps, added] if dep and dep != left_out]
    (small / "dvc.yaml").write_text(
        json.dumps({"stages": {"work": {"cmd": "python -m stages.work", "deps": deps}}})
    )
    found = faults(small)
    assert len(found) == (message is not None)
    assert not found or message in found[0]


@pytest.mark.parametrize(
    "line",
    [
        "import importlib\nimportlib.import_module('aurora.three')\n",
        "from importlib import import_module\nimport_module('aurora.three')\n",
        "from . import three\n",
        "from .three import X\n",
    ],
)
def test_every_form_of_an_import_counts(small: Path, line: str):
    (small / "aurora/two.py").write_text(line)
    deps = ["stages/work.py", "stages/__init__.py", "aurora/__init__.py", "aurora/one.py", "aurora/two.py"]
    stages = {"work": {"cmd": "python -m stages.work", "deps": deps}}
    (small / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    assert faults(small) == [
        "dvc.yaml: work: aurora/three.py is missing, imported by aurora/two.py; add it to deps"
    ]


def test_what_the_package_of_the_stages_imports_counts(small: Path):
    (small / "stages/__init__.py").write_text("from aurora.three import X\n")
    deps = ["stages/work.py", "stages/__init__.py", "aurora/__init__.py", "aurora/one.py", "aurora/two.py"]
    stages = {"work": {"cmd": "python -m stages.work", "deps": deps}}
    (small / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    assert faults(small) == [
        "dvc.yaml: work: aurora/three.py is missing, imported by stages/__init__.py; add it to deps"
    ]


def test_a_stage_with_a_command_of_one_s_own_is_none_of_our_concern(small: Path):
    (small / "dvc.yaml").write_text(json.dumps({"stages": {"own": {"cmd": "python tools/own.py"}}}))
    assert faults(small) == []


@pytest.mark.parametrize("folder", sorted(SOURCE_BUILDERS))
def test_what_a_source_depends_on_imports_itself_and_what_fetch_declares(folder: str):
    files = sorted((ROOT / folder).glob("*.py"))
    names = {file.relative_to(ROOT).as_posix() for path in files for file in imported(path, ROOT)}
    assert files
    assert {name for name in names if not name.startswith(f"{folder}/")} <= set(body("fetch")["deps"])


@pytest.mark.parametrize("stage", DVC_YAML["stages"])
def test_every_stage_is_described_and_its_command_names_declared_paths(stage: str):
    entry = body(stage)
    assert entry["desc"].strip()
    listed = [
        next(iter(item)) if isinstance(item, dict) else item
        for item in entry.get("metrics", []) + entry.get("outs", [])
    ]
    listed += entry["deps"]
    for word in entry["cmd"].split():
        if word.startswith(("data/", "models/", "metrics", "${item.model}")):
            assert any(word == path or path.startswith(f"{word}/") for path in listed), word


@pytest.mark.parametrize("stage", DVC_YAML["stages"])
def test_every_declared_parameter_is_a_section_of_the_schema(stage: str):
    for name in body(stage).get("params", []):
        if isinstance(name, str):
            section, *rest = name.split(".")
            assert section in Params.model_fields
            if rest and rest != ["${key}"]:
                (key,) = rest
                assert key in Params.model_fields[section].annotation.model_fields


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))], ids=lambda p: p.name
)
def test_every_profile_fits_the_schema(path: Path):
    load_params(path)


VERSION_CASES = {
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
        "version of pandas is missing",
    ),
    "a pin of pip's that differs": (
        {"constraints.txt": "numpy==2.0\n"},
        "versions.yaml: numpy is 1.0, but 2.0 in constraints.txt; write the same in both",
    ),
    "a pin of the project that differs": (
        {"pyproject.toml": "[project]\ndependencies = ['numpy==2.0']\n"},
        "versions.yaml: numpy is 1.0, but 2.0 in pyproject.toml; write the same in both",
    ),
    "a library that no stage declares": (
        {"versions.yaml": "numpy: '1.0'\ntorch: '2'\n", "constraints.txt": "numpy==1.0\ntorch==2\n"},
        "versions.yaml: torch is declared by no stage; remove it",
    ),
    "a declared library without a version": (
        {"versions.yaml": "{}\n"},
        "versions.yaml: numpy is missing, which a stage declares; add it",
    ),
    "another version where a source is made": (
        {
            "aurora/small_base/versions.yaml": "numpy: '9'\n",
            "aurora/small_base/__init__.py": "import numpy\n",
        },
        "aurora/small_base/versions.yaml: numpy is 9, but 1.0 in versions.yaml; write the same in both",
    ),
}


@pytest.mark.parametrize(("files", "message"), VERSION_CASES.values(), ids=VERSION_CASES)
def test_versions_are_tracked_where_they_count(tmp_path: Path, files: dict[str, str], message: str):
    stage = {"cmd": "python -m stages.work", "deps": [], "params": [{"versions.yaml": ["numpy"]}]}
    sound = {
        "dvc.yaml": json.dumps({"stages": {"work": stage}}),
        "stages/work.py": "import aurora.one\n",
        "stages/__init__.py": "",
        "aurora/__init__.py": "",
        "aurora/one.py": "import click\nimport numpy\nfrom json import dumps\n",
        "versions.yaml": "numpy: '1.0'\n",
        "constraints.txt": "Numpy==1.0+cpu\nother==3\n",
        "pyproject.toml": "[project]\ndependencies = ['numpy==1.0', 'other']\n",
    }

    for folder in SOURCE_BUILDERS:
        (tmp_path / folder).mkdir(parents=True)

    def write(content: dict[str, str]) -> None:
        for name, text in content.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    write(sound)
    assert version_faults(tmp_path) == []
    write(files)
    assert message.format(root=tmp_path) in "\n".join(version_faults(tmp_path))


def test_the_versions_of_this_repository_are_those_of_its_stages():
    assert version_faults(ROOT) == []
