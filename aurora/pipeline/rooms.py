"""The rule of rooms: what dvc.yaml says of the code, held against what the stages import.

A room is a folder of aurora/ that stages list as a dep. A stage lists whole rooms, and every file of a room is reached
by every stage that lists it; only `core` serves any two. Imports between rooms run one way. DVC believes dvc.yaml: a
stage with a module that is not listed there shows "up to date" after an edit of it (treeverse/dvc#9195).
"""

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from aurora.core.declared import DVC_YAML
from aurora.core.errors import ParamsError
from aurora.core.yaml_files import read_yaml

PACKAGES = ("aurora", "stages")
CORE = "aurora/core"
# Rooms that make or bring one kind of source: each stage that fetches lists those of its section, or has one as `item.uri`.
SOURCE_BUILDERS = frozenset({"aurora/hub", "aurora/small_base", "aurora/upcycled_base"})
# Rooms that no stage may reach: an edit there reruns nothing.
OUTSIDE = frozenset({"aurora/commands", "aurora/export", "aurora/pipeline", "aurora/serving"})


def read_stages(root: Path) -> dict[str, dict]:
    """Each stage of dvc.yaml by its name, without instances: cmd, deps, params, outs as written there."""
    content = read_yaml(root / DVC_YAML)
    return {name: entry.get("do", entry) for name, entry in content["stages"].items()}


def script_of(entry: dict) -> str | None:
    """The module of stages that a stage of dvc.yaml runs; None for a command of another kind."""
    command = entry.get("cmd")
    lines = command if isinstance(command, list) else [command]
    found = re.search(r"-m stages\.(\w+)", " ".join(map(str, lines)))
    return found[1] if found else None


def room_of(file: str) -> str:
    """`aurora/clean/filters.py` -> `aurora/clean`; a script, or a file of aurora/ itself, is its own room."""
    parts = file.split("/")
    return "/".join(parts[:2]) if parts[0] == "aurora" else file


def imported(path: Path, root: Path) -> set[Path]:
    """Modules of this repository that a module imports, at its top or later, as paths below `root`."""
    found = set()
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ParamsError(f"{path} line {error.lineno}: not Python ({error.msg}); correct it") from None
    package = path.parent.relative_to(root).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            start = ".".join(filter(None, (above, node.module)))
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in (
            getattr(node.func, "id", None),
            getattr(node.func, "attr", None),
        ):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            names = [
                argument.value
                for argument in given
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES and "." in name:
                module = root / Path(*name.split("."))
                candidates = (module.with_suffix(".py"), module / "__init__.py")
                found |= {file for file in candidates if file.is_file()}
    return found


def reached(script: str, root: Path, listed: Collection[str] = ()) -> dict[str, str]:
    """Every file that running a module of stages can import, relative to `root`, with the file that imports it.

    That includes the __init__.py that Python runs before a module of a package. The rooms in SOURCE_BUILDERS are left
    out for fetch, unless they are `listed`.
    """
    start = root / "stages" / f"{script}.py"
    todo, seen = [start], {start: "python -m"}
    while todo:
        importer = todo.pop()
        name = importer.relative_to(root).as_posix()
        packages = {root / package / "__init__.py" for package in importer.relative_to(root).parents[:-1]}
        for file in sorted((imported(importer, root) | packages) - set(seen)):
            if script == "fetch" and room_of(file.relative_to(root).as_posix()) in SOURCE_BUILDERS - set(listed):
                continue
            if file.is_file():
                seen[file] = name
                todo.append(file)
    return {file.relative_to(root).as_posix(): importer for file, importer in seen.items()}


def faults(root: Path) -> list[str]:
    """One line, with its remedy, for each place where dvc.yaml and the imports break the rule of rooms."""
    code = {}  # rooms and scripts that each stage lists
    files = {}  # files that each stage reaches
    for stage, entry in read_stages(root).items():
        if script := script_of(entry):
            code[stage] = {
                dep for dep in entry.get("deps") or () if dep.startswith(tuple(f"{name}/" for name in PACKAGES))
            }
            files[stage] = reached(script, root, code[stage])
    lines = [line for stage in files for line in _of_stage(root, stage, code[stage], files[stage])]
    lines += _of_files(root, code, files)
    return [*lines, *_of_arrows(root)]


def _of_stage(root: Path, stage: str, code: set[str], files: dict[str, str]) -> Iterator[str]:
    rooms: dict[str, str] = {}
    for file, importer in files.items():
        rooms.setdefault(room_of(file), importer)
    for room in sorted(rooms.keys() - code):
        if room in OUTSIDE:
            yield f"{rooms[room]}: imports {room}, which no stage may reach; move what {stage} needs to a room of its own"
        else:
            yield f"{DVC_YAML}: {stage}: {room} is missing, imported by {rooms[room]}; add it to deps"
    for dep in sorted(code - rooms.keys()):
        if (root / room_of(dep)).is_dir() and room_of(dep) != dep:
            yield f"{DVC_YAML}: {stage}: {dep} is part of a room; list {room_of(dep)}"
        else:
            yield f"{DVC_YAML}: {stage}: {dep} is listed, but nothing there imports it; take it out of deps"


def _of_files(root: Path, code: dict[str, set[str]], files: dict[str, dict[str, str]]) -> Iterator[str]:
    """Files of rooms that not all stages reach which list the room."""
    for room in sorted({dep for deps in code.values() for dep in deps if (root / dep).is_dir()}):
        if room in SOURCE_BUILDERS:
            continue
        listing = {stage for stage, deps in code.items() if room in deps}
        for path in sorted((root / room).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            users = sorted(stage for stage in listing if file in files[stage])
            if len(users) >= (2 if room == CORE else len(listing)):
                continue
            if not users:
                yield f"{file} is reached by no stage; remove it, or move it to aurora/commands"
            elif room == CORE or len(users) == 1:
                yield f"{file} is reached by {users[0]} alone; move it to aurora/{users[0]}"
            else:
                yield f"{file} is reached by {' and '.join(users)} alone; move it to a room that only these list"


def _of_arrows(root: Path) -> Iterator[str]:
    """Rooms that import each other, and scripts of stages that import another."""
    arrows: dict[str, dict[str, str]] = {}
    for path in sorted((root / "aurora").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        for target in sorted(imported(path, root)):
            other = room_of(target.relative_to(root).as_posix())
            if other != room_of(file) and other != "aurora/__init__.py":
                arrows.setdefault(room_of(file), {}).setdefault(other, file)
    for room, others in sorted(arrows.items()):
        for other, file in others.items():
            if room in _above(other, arrows):
                yield f"{file}: imports {other}, which imports {room}; imports between rooms run one way: move what both need below"
    for path in sorted((root / "stages").glob("[!_]*.py")):
        for target in sorted(imported(path, root) - {root / "stages/__init__.py"}):
            if target.is_relative_to(root / "stages"):
                yield f"stages/{path.name}: imports {target.name}; a stage never imports a stage: move what both need to aurora/"


def _above(room: str, arrows: dict[str, dict[str, str]]) -> set[str]:
    """All rooms that a room imports, directly or through others."""
    seen, todo = set(), [room]
    while todo:
        for other in arrows.get(todo.pop(), {}):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen
