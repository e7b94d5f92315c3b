"""dvc.yaml says all: each stage lists the rooms that it reaches, no other, and every path and parameter it reads."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from aurora.pipeline.params import Params, load_params
from aurora.pipeline.rooms import SOURCE_BUILDERS, faults, imported, room_of

ROOT = Path(__file__).parent.parent.parent
DVC_YAML = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))


def body(stage: str) -> dict:
    entry = DVC_YAML["stages"][stage]
    return entry.get("do", entry)


def test_every_imported_module_is_declared_and_no_other():
    assert faults(ROOT) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of two stages: both import the room one, which imports two, late; work alone imports three."""
    for name, text in {
        "stages/__init__.py": "",
        "stages/work.py": "from aurora.one.run import run\nfrom aurora.three import x\n",
        "stages/rest.py": "from aurora.one.run import run\n",
        "aurora/__init__.py": "",
        "aurora/one/__init__.py": "",
        "aurora/one/run.py": "def run():\n    import aurora.two.deep\n",
        "aurora/two/__init__.py": "",
        "aurora/two/deep.py": "",
        "aurora/three/__init__.py": "",
        "aurora/three/x.py": "",
        "aurora/four/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


SHARED = ["stages/__init__.py", "aurora/__init__.py", "aurora/one", "aurora/two"]


def said(small: Path, left_out: str | None = None, added: str | None = None) -> list[str]:
    """Faults of the repository where dvc.yaml lists other deps for work."""
    deps = [dep for dep in ["stages/work.py", *SHARED, "aurora/three", added] if dep and dep != left_out]
    stages = {
        "work": {"cmd": "python -m stages.work", "deps": deps},
        "rest": {"cmd": "python -m stages.rest", "deps": ["stages/rest.py", *SHARED]},
    }
    (small / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    return faults(small)


@pytest.mark.parametrize(
    ("left_out", "added", "message"),
    [
        ("aurora/two", None, "work: aurora/two is missing, imported by aurora/one/run.py; add it to deps"),
        ("stages/__init__.py", None, "work: stages/__init__.py is missing, imported by stages/work.py; add it"),
        (None, "aurora/four", "work: aurora/four is listed, but nothing there imports it; take it out"),
        (None, "aurora/two/deep.py", "work: aurora/two/deep.py is part of a room; list aurora/two"),
    ],
)
def test_a_wrong_list_of_rooms_is_said(small: Path, left_out: str, added: str, message: str):
    assert said(small) == []
    (found,) = (line for line in said(small, left_out, added) if "is reached by" not in line)
    assert message in found


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"aurora/one/alone.py": "", "stages/work.py": "import aurora.one.alone, aurora.one.run, aurora.three.x"},
            "aurora/one/alone.py is reached by work alone; move it to aurora/work",
        ),
        (
            {"aurora/two/idle.py": ""},
            "aurora/two/idle.py is reached by no stage; remove it, or move it to aurora/commands",
        ),
        (
            {"aurora/two/deep.py": "import aurora.one.run"},
            "aurora/one/run.py: imports aurora/two, which imports aurora/one; imports between rooms run one way",
        ),
        (
            {"stages/rest.py": "import aurora.one.run\nimport stages.work\n"},
            "stages/rest.py: imports work.py; a stage never imports a stage",
        ),
        (
            {"aurora/commands/__init__.py": "", "aurora/one/run.py": "import aurora.two.deep, aurora.commands"},
            "aurora/one/run.py: imports aurora/commands, which no stage may reach",
        ),
        (
            {"aurora/four/__init__.py": "import aurora.five", "aurora/five/__init__.py": "import aurora.four"},
            "imports between rooms run one way",
        ),
    ],
    ids=["one user", "no user", "a circle", "stage to stage", "a command", "a circle off the stages"],
)
def test_a_file_in_the_wrong_room_is_said(small: Path, files: dict[str, str], message: str):
    for name, text in files.items():
        (small / name).parent.mkdir(exist_ok=True, parents=True)
        (small / name).write_text(text)
    assert message in "\n".join(said(small))


def test_core_serves_any_two_stages(small: Path):
    (small / "aurora/core").mkdir()
    for name, text in (
        ("core/__init__.py", ""),
        ("core/both.py", ""),
        ("core/one.py", ""),
        ("one/run.py", "import aurora.two.deep, aurora.core.both"),
        ("three/x.py", "import aurora.core.one"),
    ):
        (small / "aurora" / name).write_text(text)
    SHARED.append("aurora/core")
    try:
        assert said(small) == ["aurora/core/one.py is reached by work alone; move it to aurora/work"]
    finally:
        SHARED.remove("aurora/core")


@pytest.mark.parametrize(
    "line",
    [
        "import importlib\nimportlib.import_module('aurora.four')\n",
        "from importlib import import_module\nimport_module('aurora.four')\n",
        "from importlib import import_module\nimport_module(name='aurora.four')\n",
        "from .. import four\n",
        "from ..four import X\n",
    ],
)
def test_every_form_of_an_import_counts(small: Path, line: str):
    (small / "aurora/two/deep.py").write_text(line)
    missing = "aurora/four is missing, imported by aurora/two/deep.py; add it to deps"
    assert said(small) == [f"dvc.yaml: {stage}: {missing}" for stage in ("work", "rest")]


def test_a_stage_with_a_command_of_one_s_own_is_none_of_our_concern(small: Path):
    (small / "dvc.yaml").write_text(json.dumps({"stages": {"own": {"cmd": "python tools/own.py"}}}))
    assert faults(small) == []


@pytest.mark.parametrize("folder", sorted(SOURCE_BUILDERS))
def test_what_a_source_depends_on_imports_itself_and_what_fetch_declares(folder: str):
    files = sorted((ROOT / folder).glob("*.py"))
    rooms = {room_of(file.relative_to(ROOT).as_posix()) for path in files for file in imported(path, ROOT)}
    assert files
    assert rooms - {folder} <= set(body("fetch")["deps"])


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
