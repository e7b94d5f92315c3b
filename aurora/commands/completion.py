"""Names that the shell completes: stages of dvc.lock, and instruction sources of params.yaml."""

from collections.abc import Iterable
from pathlib import Path

import click

from aurora.core.errors import AuroraError
from aurora.core.params import PARAMS_FILE
from aurora.core.yaml_files import read_yaml


def stages(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Stages (`eval`) and their instances (`eval@tuned`)."""
    names = _read(Path("dvc.lock")).get("stages", {})
    return _starting(incomplete, {*names, *(name.partition("@")[0] for name in names)})


def sources(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Sources of conversations."""
    params = _read(PARAMS_FILE)
    entries = {**(params.get("sources") or {}), **(params.get("downloads") or {})}
    return _starting(incomplete, [key for key, entry in entries.items() if entry["kind"] == "instructions"])


def _read(file: Path) -> dict:
    try:
        return read_yaml(file)
    except AuroraError:  # the shell has no place for a message
        return {}


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
