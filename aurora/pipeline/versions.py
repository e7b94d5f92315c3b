"""The libraries that stages import, held against the versions that dvc.yaml makes parameters of them."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from aurora.core.declared import DVC_YAML, OPTIONAL, VERSIONS, declared_params, libraries
from aurora.core.yaml_files import read_yaml
from aurora.pipeline.rooms import PACKAGES, SOURCE_BUILDERS, reached, read_stages, script_of

# Libraries on which no byte of an output depends: they read commands and params, talk, or bring bytes that pins name.
UNTRACKED = frozenset(
    {"click", "dvc", "dvc-data", "huggingface-hub", "httpx2", "pydantic", "ruamel-yaml", "scmrepo", "tqdm"}
)


def version_faults(root: Path) -> list[str]:
    """One line for each library that a stage imports and does not track the version of, or tracks in vain.

    versions.yaml is held against constraints.txt and pyproject.toml too, which pip installs by, and against the file of
    the same name in the folders from which a source is made.
    """
    groups = read_yaml(root / VERSIONS)
    tracked = libraries(groups)
    lines = [
        f"{VERSIONS}: {name} is {value} in {group}, but {tracked[name]} in another group; write it once and refer to it"
        for group, versions in groups.items()
        for name, value in versions.items()
        if str(value) != tracked[name]
    ]
    used = set()
    for stage, entry in read_stages(root).items():
        script = script_of(entry)
        files = [root / name for name in reached(script, root)] if script else []
        declared = declared_params(entry)[1]
        used |= set(declared)
        lines += [
            f"{DVC_YAML}: {stage}: {VERSIONS} has no group {name}; there are {', '.join(groups)}"
            for name in declared
            if name not in groups
        ]
        lines += _compared(f"{DVC_YAML}: {stage}", files, set(libraries(groups, declared)))
    for folder in sorted(SOURCE_BUILDERS):
        file = root / folder / VERSIONS
        own = read_yaml(file) if file.is_file() else {}
        used |= {group for group, versions in groups.items() if versions.keys() & own.keys()}
        place = f"{folder}/{VERSIONS}"
        lines += _compared(place, sorted((root / folder).rglob("*.py")), set(own))
        lines += [
            f"{place}: {name} is {value}, but {tracked.get(name)} in {VERSIONS}; write the same in both"
            for name, value in own.items()
            if tracked.get(name) != value
        ]
    lines += [
        f"{VERSIONS}: group {name} is declared by no stage; remove it"
        for name in sorted(groups.keys() - used)
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


def shadowing(root: Path) -> list[str]:
    """One line for each module in the root that has a library's name: stages ignore it, other programs would take it."""
    known = {*sys.stdlib_module_names, *_distributions()} - set(PACKAGES)
    files = [*root.glob("*.py"), *(path.parent for path in root.glob("*/__init__.py"))]
    return [
        f"{path.relative_to(root)}: has the name of a library, which it would replace; rename it"
        for path in sorted(files)
        if path.stem in known
    ]


def _compared(place: str, files: list[Path], declared: set[str]) -> list[str]:
    libraries = {name: file for file in files for name in _libraries(file)}
    wanted = libraries.keys() - UNTRACKED
    lines = [
        f"{place}: version of {name} is missing, imported by {libraries[name]}; add it"
        for name in sorted(wanted - declared)
    ]
    return lines + [
        f"{place}: version of {name} is listed, but nothing there imports or brings it; take it out"
        for name in sorted(declared - _with_required(wanted) - OPTIONAL)
    ]


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
