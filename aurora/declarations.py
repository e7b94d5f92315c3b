"""What dvc.yaml says of the code, held against what the stages import.

DVC believes dvc.yaml: a stage with a module that is not listed there shows "up to date" after an edit of it
(treeverse/dvc#9195).
"""

import ast
import re
from pathlib import Path

from aurora.errors import ParamsError
from aurora.running import MAP
from aurora.yaml_files import read_yaml

PACKAGES = ("aurora", "stages")
# An instance of fetch has one of them as `item.dep`.
BY_SOURCE = frozenset({"aurora/fetch/hub", "aurora/small_base", "aurora/upcycled_base"})


def read_stages(root: Path) -> dict[str, dict]:
    """Each stage of dvc.yaml by its name, without instances: cmd, deps, params, outs as they stand there."""
    content = read_yaml(root / MAP)
    return {name: entry.get("do", entry) for name, entry in content["stages"].items()}


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
            names = [
                argument.value for argument in node.args if isinstance(getattr(argument, "value", None), str)
            ]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES and "." in name:
                module = root / Path(*name.split("."))
                candidates = (module.with_suffix(".py"), module / "__init__.py")
                found |= {file for file in candidates if file.is_file()}
    return found


def script_of(entry: dict) -> str | None:
    """The module of stages that a stage of dvc.yaml runs; None for a command of another kind."""
    command = entry.get("cmd")
    lines = command if isinstance(command, list) else [command]
    found = re.search(r"-m stages\.(\w+)", " ".join(map(str, lines)))
    return found[1] if found else None


def reached(script: str, root: Path) -> dict[str, str]:
    """Every module that running a module of stages can import, as dvc.yaml lists it, with the module that imports it.

    A package that is imported as such is listed as its folder, and any other by the __init__.py that Python runs
    before a module of it. What an instance of fetch watches by its source's `dep` is left out.
    """
    start = root / "stages" / f"{script}.py"
    todo, seen, before = [start], {start: "python -m"}, set()
    while todo:
        importer = todo.pop()
        name = importer.relative_to(root).as_posix() if importer in before else _name(importer, root)
        for file in sorted(imported(importer, root) - set(seen)):
            if script == "fetch" and _name(file, root) in BY_SOURCE:
                continue
            seen[file] = name
            todo.append(file)
        for package in importer.relative_to(root).parents[:-1]:
            first = root / package / "__init__.py"
            if first not in before and first not in seen:
                before.add(first)
                todo.append(first)
    modules = {_name(file, root): importer for file, importer in seen.items()}
    for first in before - set(seen):
        modules.setdefault(first.relative_to(root).as_posix(), "python -m")
    return modules


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix().removesuffix("/__init__.py")


def faults(root: Path) -> list[str]:
    """One line for each module that a stage imports and dvc.yaml misses, or that it lists in vain."""
    lines = []
    for stage, entry in read_stages(root).items():
        if not (script := script_of(entry)):
            continue
        modules = reached(script, root)
        code = {dep for dep in entry.get("deps") or () if _is_code(dep, root)}
        lines += [
            f"{MAP}: {stage}: {name} is missing, imported by {modules[name]}; add it to deps"
            for name in sorted(set(modules) - code)
        ]
        lines += [
            f"{MAP}: {stage}: {name} is listed, but nothing there imports it; take it out of deps"
            for name in sorted(code - set(modules))
        ]
    return lines


def _is_code(dep: str, root: Path) -> bool:
    # Data files within a package belong to the module that reads them; a test run traces those.
    return dep.startswith(tuple(f"{package}/" for package in PACKAGES)) and (
        dep.endswith(".py") or (root / dep).is_dir()
    )
