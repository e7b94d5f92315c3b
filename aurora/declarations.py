"""What dvc.yaml says of the code, held against what the stages import.

DVC believes dvc.yaml: a stage with a module that is not listed there shows "up to date" after an edit of it
(treeverse/dvc#9195).
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from aurora.errors import ParamsError
from aurora.running import MAP, VERSIONS
from aurora.yaml_files import read_yaml

PACKAGES = ("aurora", "stages")
# An instance of fetch has one of them as `item.dep`.
BY_SOURCE = frozenset({"aurora/fetch/hub", "aurora/small_base"})
# Libraries on which no byte of an output depends: they read commands and params, talk, or bring bytes that pins name.
WITHOUT_TRACE = frozenset(
    {"click", "dvc", "dvc-data", "huggingface-hub", "httpx2", "pydantic", "ruamel-yaml", "scmrepo", "tqdm"}
)


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
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "import_module":
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES and "." in name:
                module = root / Path(*name.split("."))
                candidates = (module.with_suffix(".py"), module / "__init__.py")
                found |= {file for file in candidates if file.is_file()}
    return found


def reached(stage: str, root: Path) -> dict[str, str]:
    """Every module that running a stage can import, as dvc.yaml lists it, with the module that imports it.

    A package that is imported as such is listed as its folder, and any other by the __init__.py that Python runs
    before a module of it. What an instance of fetch watches by its source's `dep` is left out.
    """
    start = root / "stages" / f"{stage}.py"
    todo, seen = [start], {start: "python -m"}
    while todo:
        importer = todo.pop()
        for file in sorted(imported(importer, root) - set(seen)):
            if stage == "fetch" and _name(file, root) in BY_SOURCE:
                continue
            seen[file] = _name(importer, root)
            todo.append(file)
    modules = {_name(file, root): importer for file, importer in seen.items()}
    folders = {Path(name) for name in modules if not name.endswith(".py")}
    for file in seen:
        for package in file.relative_to(root).parents[:-1]:
            if package not in folders:
                modules.setdefault(f"{package.as_posix()}/__init__.py", "python -m")
    return modules


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix().removesuffix("/__init__.py")


def faults(root: Path) -> list[str]:
    """One line for each module that a stage imports and dvc.yaml misses, or that it lists in vain."""
    lines = []
    for stage, entry in read_stages(root).items():
        modules = reached(stage, root)
        code = {dep for dep in entry["deps"] if _is_code(dep, root)}
        lines += [
            f"{MAP}: {stage}: {name} is missing, imported by {modules[name]}; add it to deps"
            for name in sorted(set(modules) - code)
        ]
        lines += [
            f"{MAP}: {stage}: {name} is listed, but nothing there imports it; take it out of deps"
            for name in sorted(code - set(modules))
        ]
    return lines


def version_faults(root: Path) -> list[str]:
    """One line for each library that a stage imports and does not track the version of, or tracks in vain.

    versions.yaml is held against constraints.txt too, which pip installs by, and against the file of the same name in
    the folders from which a source is made.
    """
    tracked = read_yaml(root / VERSIONS)
    lines, used = [], set()
    for stage, entry in read_stages(root).items():
        files = [file for name in reached(stage, root) for file in _python(root / name)]
        declared = {
            name
            for item in entry.get("params", ())
            if isinstance(item, dict)
            for name in item.get(VERSIONS, ())
        }
        used |= declared
        lines += _compared(f"{MAP}: {stage}", files, declared)
    for folder in sorted(BY_SOURCE):
        file = root / folder / VERSIONS
        own = read_yaml(file) if file.is_file() else {}
        used |= own.keys()
        place = f"{folder}/{VERSIONS}"
        lines += _compared(place, _python(root / folder), set(own))
        lines += [
            f"{place}: {name} is {value}, but {tracked.get(name)} in {VERSIONS}; write the same in both"
            for name, value in own.items()
            if tracked.get(name) != value
        ]
    lines += [
        f"{VERSIONS}: {name} is declared by no stage; remove it" for name in sorted(tracked.keys() - used)
    ]
    lines += [
        f"{VERSIONS}: {name} is missing, which a stage declares; add it"
        for name in sorted(used - tracked.keys())
    ]
    pins = dict(_pins(root / "constraints.txt"))
    return lines + [
        f"{VERSIONS}: {name} is {value}, but {pins.get(name, 'absent')} in constraints.txt; write the same in both"
        for name, value in tracked.items()
        if pins.get(name) != value
    ]


def _compared(place: str, files: list[Path], declared: set[str]) -> list[str]:
    libraries = {name: file for file in files for name in _libraries(file)}
    wanted = libraries.keys() - WITHOUT_TRACE
    lines = [
        f"{place}: version of {name} is missing, imported by {libraries[name]}; add it"
        for name in sorted(wanted - declared)
    ]
    return lines + [
        f"{place}: version of {name} is listed, but nothing there imports or brings it; take it out"
        for name in sorted(declared - _with_required(wanted))
    ]


def _python(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


def _libraries(file: Path) -> set[str]:
    """Distributions, by their normal names, whose modules a file imports at its top or later."""
    from importlib.metadata import packages_distributions

    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    names -= {*sys.stdlib_module_names, *PACKAGES}
    known = cache(packages_distributions)()
    return {_normal(distribution) for name in names for distribution in known.get(name, [name])}


def _with_required(names: set[str]) -> set[str]:
    """Distributions and all that they need."""
    from importlib.metadata import PackageNotFoundError, requires

    todo, seen = list(names), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        todo += [
            _normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in needed if "extra ==" not in text
        ]
    return seen


def _pins(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        name, sign, pinned = line.partition("==")
        if sign:
            yield _normal(name), pinned.strip().partition("+")[0]


def _normal(name: str) -> str:
    # PEP 503
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_code(dep: str, root: Path) -> bool:
    # Data files within a package belong to the module that reads them; a test run traces those.
    return dep.startswith(tuple(f"{package}/" for package in PACKAGES)) and (
        dep.endswith(".py") or (root / dep).is_dir()
    )
