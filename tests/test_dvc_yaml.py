"""dvc.yaml says all: each stage lists every module it imports, no other, and every path and parameter it reads."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from aurora.params import Params, load_params

ROOT = Path(__file__).parent.parent
MAP = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
# fetch reaches these through `dep` of a source, one of them an instance.
BY_SOURCE = {"aurora/hub.py", "aurora/small_base"}


def body(stage: str) -> dict:
    entry = MAP["stages"][stage]
    return entry.get("do", entry)


def imported(path: Path) -> set[Path]:
    """Files of this repository that a module imports, at its top or later, itself excluded."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in ("aurora", "stages") and "." in name:
                module = ROOT / Path(*name.split("."))
                found |= {
                    file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()
                }
    return found


def reached(stage: str) -> set[str]:
    """Every module of the repository that running the stage can import, as dvc.yaml would list it."""
    start = ROOT / "stages" / f"{stage}.py"
    todo, seen = [start], {start}
    while todo:
        for file in imported(todo.pop()) - seen:
            name = file.relative_to(ROOT).as_posix().removesuffix("/__init__.py")
            if stage == "fetch" and name in BY_SOURCE:
                continue
            seen.add(file)
            todo.append(file)
    names = {file.relative_to(ROOT).as_posix().removesuffix("/__init__.py") for file in seen}
    packages = {"stages/__init__.py", "aurora/__init__.py"}  # Python runs them before any module of theirs
    return names | packages


@pytest.mark.parametrize("stage", MAP["stages"])
def test_every_imported_module_is_declared_and_no_other(stage: str):
    declared = {dep for dep in body(stage)["deps"] if dep.startswith(("stages/", "aurora/"))}
    # Data files of the package count as code of the module that reads them.
    code = {dep for dep in declared if dep.endswith(".py") or (ROOT / dep).is_dir()}
    assert code == reached(stage)


@pytest.mark.parametrize("path", ["aurora/hub.py", "aurora/small_base/__init__.py"])
def test_what_a_source_depends_on_imports_only_what_fetch_declares(path: str):
    allowed = {*body("fetch")["deps"], "aurora/small_base"}
    names = set()
    for file in imported(ROOT / path):
        name = file.relative_to(ROOT).as_posix()
        names.add("aurora/small_base" if name.startswith("aurora/small_base/") else name)
    assert names <= allowed


@pytest.mark.parametrize("stage", MAP["stages"])
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


@pytest.mark.parametrize("stage", MAP["stages"])
def test_every_declared_parameter_is_a_section_of_the_schema(stage: str):
    for name in body(stage).get("params", []):
        assert name.split(".")[0] in Params.model_fields


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))], ids=lambda p: p.name
)
def test_every_profile_fits_the_schema(path: Path):
    load_params(path)
