"""The libraries that stages import, held against the versions that dvc.yaml makes parameters of them."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from aurora.declarations import BY_SOURCE, PACKAGES, reached, read_stages, script_of
from aurora.running import MAP, OPTIONAL, VERSIONS, declared_params
from aurora.yaml_files import read_yaml

# Libraries on which no byte of an output depends: they read commands and params, talk, or bring bytes that pins name.
WITHOUT_TRACE = frozenset(
    {"click", "dvc", "dvc-data", "huggingface-hub", "httpx2", "pydantic", "ruamel-yaml", "scmrepo", "tqdm"}
)


def version_faults(root: Path) -> list[str]:
    """One line for each library that a stage imports and does not track the version of, or tracks in vain.

    versions.yaml is held against constraints.txt and pyproject.toml too, which pip installs by, and against the file of
    the same name in the folders from which a source is made.
    """
    tracked = read_yaml(root / VERSIONS)
    lines, used = [], set()
    for stage, entry in read_stages(root).items():
        script = script_of(entry)
        files = [file for name in reached(script, root) for file in _python(root / name)] if script else []
        declared = set(declared_params(entry)[1])
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
    constraints = dict(_pins((root / "constraints.txt").read_text(encoding="utf-8").splitlines()))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = dict(_pins(project["dependencies"]))  # not all that is tracked: some come with others
    for name, value in tracked.items():
        for file, found in (
            ("constraints.txt", constraints.get(name, "absent")),
            ("pyproject.toml", direct.get(name, value)),
        ):
            if found != value:
                lines.append(f"{VERSIONS}: {name} is {value}, but {found} in {file}; write the same in both")
    return lines


def _compared(place: str, files: list[Path], declared: set[str]) -> list[str]:
    libraries = {name: file for file in files for name in _libraries(file)}
    wanted = libraries.keys() - WITHOUT_TRACE
    lines = [
        f"{place}: version of {name} is missing, imported by {libraries[name]}; add it"
        for name in sorted(wanted - declared)
    ]
    return lines + [
        f"{place}: version of {name} is listed, but nothing there imports or brings it; take it out"
        for name in sorted(declared - _with_required(wanted) - OPTIONAL)
    ]


def _python(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


def _libraries(file: Path) -> set[str]:
    """Distributions, by their normal names, whose modules a file imports at its top or later."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    names -= {*sys.stdlib_module_names, *PACKAGES}
    known = _distributions()
    return {_normal(distribution) for name in names for distribution in known.get(name, [name])}


@cache
def _distributions() -> dict[str, list[str]]:
    from importlib.metadata import packages_distributions  # reads every installed package: a second

    return dict(packages_distributions())


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


def _pins(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, sign, pinned = line.partition("==")
        if sign:
            yield _normal(name), pinned.strip().partition("+")[0]


def _normal(name: str) -> str:
    # PEP 503
    return re.sub(r"[-_.]+", "-", name).lower()
