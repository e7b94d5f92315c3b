"""What `make check` asks of every doc page: its links lead somewhere, and its commands and options exist."""

import re
from collections.abc import Callable, Collection
from difflib import get_close_matches
from pathlib import Path

import click

COMMAND = re.compile(r"(?:^|`|&& |\()(aurora|make|dvc|python -m|python) ([\w./-]+)([^`#|&]*)")


def link_faults(root: Path, pages: list[Path]) -> list[str]:
    """A line for each link to a file or a heading that is not there."""
    lines = []
    for page, number, line in _lines(root, pages):
        for target in re.findall(r"(?:\]\(|src=\")([^)\"\s]+)[)\"]", line):
            file, _, heading = target.partition("#")
            if "://" in target:
                continue
            path = (root / page).parent / file if file else root / page
            if not path.exists():
                lines.append(f"{page} line {number}: {target} does not exist; correct the link")
            elif heading and heading not in _anchors(path):
                lines.append(f"{page} line {number}: {target}: no such heading; correct the link")
    return lines


def _lines(root: Path, pages: list[Path]) -> list[tuple[Path, int, str]]:
    return [
        (page, number, line)
        for page in pages
        for number, line in enumerate((root / page).read_text(encoding="utf-8").splitlines(), 1)
    ]


def _anchors(path: Path) -> set[str]:
    """Headings as GitHub and mkdocs name them."""
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def command_faults(root: Path, pages: list[Path], aurora: click.Group) -> list[str]:
    """A line for each command, make target, dvc command, script or option of `aurora` that does not exist."""
    context = click.Context(aurora)
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?m)^([a-z-]+):", makefile)
    known: dict[str, Callable[[str], Collection[str]]] = {
        "aurora": lambda name: aurora.list_commands(context),
        "make": lambda name: targets,
        "dvc": lambda name: _dvc_commands(),
        "python": lambda name: [name] if (root / name).exists() else _files(root, "benchmarks/*.py"),
        "python -m": lambda name: [name] if _module(root, name) else _files(root, "stages/*.py"),
    }
    lines = []
    for page, number, line in _lines(root, pages):
        for program, name, rest in COMMAND.findall(line):
            if name.startswith("-"):
                continue
            there = known[program](name)
            place = f"{page} line {number}: {program} {name}"
            if name not in there:
                near = get_close_matches(name, there, n=1) or ["none like it"]
                lines.append(f"{place} does not exist; there is {near[0]}")
            elif program == "aurora":
                options = _options(aurora.get_command(context, name))
                for option in re.findall(r"(?<!\S)(--[a-z][\w-]*)", rest) if options else ():
                    if option not in options:
                        near = get_close_matches(option, options, n=1) or ["none like it"]
                        lines.append(f"{place} has no option {option}; it has {near[0]}")
    return lines


def _options(command: click.Command | None) -> set[str]:
    """Options of a command; none for one that hands its arguments on."""
    if command is None or command.context_settings.get("ignore_unknown_options"):
        return set()
    return {"--help"} | {name for item in command.params for name in (*item.opts, *item.secondary_opts)}


def _dvc_commands() -> list[str]:
    from dvc.cli.parser import get_main_parser

    parsers = [action.choices for action in get_main_parser()._actions if isinstance(action.choices, dict)]
    return list(parsers[0])


def _files(root: Path, pattern: str) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.glob(pattern)]


def _module(root: Path, name: str) -> bool:
    path = root / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()
