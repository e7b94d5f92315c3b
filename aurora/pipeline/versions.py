"""The libraries that stages import, held against the versions that dvc.yaml makes parameters of them."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aurora.core.declared import DVC_YAML, OPTIONAL, VERSIONS, declared_params, libraries
from aurora.core.yaml_files import read_yaml
from aurora.pipeline.rooms import PACKAGES, SOURCE_BUILDERS, reached, read_stages, script_of

PYPROJECT, CONSTRAINTS = "pyproject.toml", "constraints.txt"
# A line of versions.yaml: the library with what surrounds it, the library, the version.
TRACKED = re.compile(r"""(?m)^( *([\w.-]+): +(?:&\w+ +)?)["']?([\w.]+)["']?(?=\s|$)""")
# Libraries on which no byte of an output depends: they read commands and params, talk, or bring bytes that pins name.
UNTRACKED = frozenset(
    {
        "click",
        "dvc",
        "dvc-data",
        "huggingface-hub",
        "httpx2",
        "pydantic",
        "ruamel-yaml",
        "ruamel-yaml-clib",
        "scmrepo",
        "tqdm",
    }
)

# Modules of extras that need not be installed, by the distribution that brings them, where its name is another.
OF_EXTRAS = {"llama_cpp": "llama-cpp-python"}


def version_faults(root: Path) -> list[str]:
    """One line for each library that a stage imports and does not track, tracks without importing it, or tracks at another version.

    pyproject.toml is the source of every version. constraints.txt, the root's versions.yaml, and the file of that name
    in the folders from which a source is made follow it by `make lock`.
    """
    groups = read_yaml(root / VERSIONS)
    lines = []
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
        lines += _compared(f"{folder}/{VERSIONS}", sorted((root / folder).rglob("*.py")), set(own))
    lines += [f"{VERSIONS}: group {name} is declared by no stage; remove it" for name in sorted(groups.keys() - used)]
    return [*lines, *_unlike_pyproject(root)]


def write_versions(root: Path) -> None:
    """Gives every library of the versions.yaml files the version that pyproject.toml pins; their comments stay."""
    pins = _pyproject(root)
    for file in _versions_files(root):
        text = file.read_text(encoding="utf-8")
        file.write_text(
            TRACKED.sub(lambda found: f'{found[1]}"{pins.get(found[2], found[3])}"', text), encoding="utf-8"
        )


def _unlike_pyproject(root: Path) -> Iterator[str]:
    """Versions that are not those of pyproject.toml, and its libraries that have none."""
    pins = _pyproject(root)
    constraints = _pins((root / CONSTRAINTS).read_text(encoding="utf-8").splitlines())
    for name, value in pins.items():
        if not value:
            yield f"{PYPROJECT}: {name} has no one version; pin it as {name}=={constraints.get(name) or '...'}"
        elif constraints.get(name) != value:
            found = constraints.get(name, "absent")
            yield f"{CONSTRAINTS}: {name} is {found}, but {value} in {PYPROJECT}; run make lock"
    for file in _versions_files(root):
        place = file.relative_to(root).as_posix()
        content = read_yaml(file)
        groups = content.values() if file == root / VERSIONS else [content]
        for name, value in dict.fromkeys(item for group in groups for item in group.items()):
            if name not in pins:
                yield f"{place}: {name} is not among the dependencies of {PYPROJECT}; add it there, then run make lock"
            elif pins[name] != value:
                yield f"{place}: {name} is {value}, but {pins[name]} in {PYPROJECT}; run make lock"


def _versions_files(root: Path) -> list[Path]:
    files = [root / VERSIONS, *(root / folder / VERSIONS for folder in sorted(SOURCE_BUILDERS))]
    return [file for file in files if file.is_file()]


def _pyproject(root: Path) -> dict[str, str]:
    """Every library that pyproject.toml names, optional ones too, with its version; "" where it is not pinned."""
    project = tomllib.loads((root / PYPROJECT).read_text(encoding="utf-8"))["project"]
    return _pins([*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())])


def shadowing(root: Path) -> list[str]:
    """One line for each module in the root that has a library's name: stages ignore it, other programs would take it."""
    own = [*PACKAGES, *(name for name, makers in _distributions().items() if set(makers) == {"aurora"})]
    known = {*sys.stdlib_module_names, *_distributions()} - set(own)
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
    return {
        canonicalize_name(distribution)
        for name in names
        for distribution in known.get(name, [OF_EXTRAS.get(name, name)])
    }


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
        todo += [canonicalize_name(Requirement(text).name) for text in needed if "extra ==" not in text]
    return seen


def _pins(lines: Iterable[str]) -> dict[str, str]:
    """Versions, without their build, by the normal names of distributions; "" where a line does not pin one version."""
    pins: dict[str, str] = {}
    for line in lines:
        if not line.startswith("#"):
            requirement = Requirement(line)
            found = re.fullmatch(r"==([^*,+]+)(\+\w+)?", str(requirement.specifier))
            pins[canonicalize_name(requirement.name)] = found[1] if found else ""
    return pins


if __name__ == "__main__":
    write_versions(Path())
