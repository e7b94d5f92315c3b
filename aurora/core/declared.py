"""The stage that DVC runs: what dvc.yaml declares for it, held against what it reads and what is installed.

DVC watches what dvc.yaml declares, and nothing else. DVC_STAGE names the stage; where it is not set, as in a stage
that is run by hand, there is nothing that DVC could miss.
"""

import os
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aurora.core.errors import ParamsError, ResourceError
from aurora.core.yaml_files import read_yaml

DVC_YAML = Path("dvc.yaml")
ABSENT = "none"  # as a version
VERSIONS = "versions.yaml"
# Extras of pyproject.toml, which shape bytes only where params.yaml asks for them; the stage then says if one is absent.
OPTIONAL = frozenset({"llama-cpp-python", "torchao"})
# The base's stage, as dvc repro takes it: an instance of fetch, fetch_download or fetch_hub.
FETCH_BASE = "--glob 'fetch*@base'"


def require_declared(key: str) -> None:
    """Raises ParamsError where the running stage does not declare this key of params.yaml."""
    stage, keys, _ = _declared()
    if stage and not any(key == item or key.startswith(f"{item}.") for item in keys):
        raise ParamsError(
            f"{DVC_YAML}: stage {stage} reads {key}, which it does not declare; add - {key} to its params"
        )


def require_versions(folder: Path = Path()) -> None:
    """Raises ResourceError where another version is installed than `folder`/versions.yaml tracks.

    In the root these are the libraries that the running stage declares; in the folder of code from which a source is
    made, all that stand there.
    """
    stage, _, declared = _declared()
    file, of_folder = folder / VERSIONS, folder != Path()
    if not stage or not (file.is_file() if of_folder else declared):
        return
    tracked = read_yaml(file)
    if not of_folder:
        for group in declared:
            if group not in tracked:
                raise ParamsError(
                    f"{file}: group {group} is missing, which stage {stage} declares; restore it from git"
                )
        tracked = libraries(tracked, declared)
    for name, value in tracked.items():
        if found := other_version(name, value):
            raise ResourceError(
                f"{stage}: {name} {found} is installed, but {file} tracks {value}; pip install"
                f" {name}=={value}, or track {found} there and let DVC run what it changes"
            )


def libraries(tracked: dict, groups: Iterable[str] | None = None) -> dict[str, str]:
    """Versions by library of these groups of versions.yaml, or of all."""
    return {
        name: str(value)
        for group in (tracked if groups is None else groups)
        for name, value in (tracked.get(group) or {}).items()
    }


def other_version(name: str, tracked: object) -> str | None:
    """The installed version where a stage would stop for it; None where it is the tracked one, or may be absent."""
    found = installed(name)
    return None if found == str(tracked) or (found == ABSENT and name in OPTIONAL) else found


def installed(name: str) -> str:
    """The installed version of a distribution without its build (`+cpu`), or `none`."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ABSENT


def _declared() -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The running stage without its instance, its keys of params.yaml and its groups of versions.yaml."""
    return _declared_by(os.environ.get("DVC_STAGE", ""), Path.cwd())


@cache
def _declared_by(name: str, root: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    stage, _, instance = name.partition("@")
    file = root / DVC_YAML
    entry = read_yaml(file).get("stages", {}).get(stage) if stage and file.is_file() else None
    if not isinstance(entry, dict):
        return "", (), ()
    keys, versions = declared_params(entry.get("do", entry))
    return stage, tuple(key.replace("${key}", instance) for key in keys), tuple(versions)


def declared_params(entry: dict) -> tuple[list[str], list[str]]:
    """The keys of params.yaml and the groups of versions.yaml that a stage of dvc.yaml declares, as written there."""
    items = entry.get("params") or ()
    files = [item for item in items if isinstance(item, dict)]
    return [item for item in items if isinstance(item, str)], [
        name for file in files for name in file.get(VERSIONS) or ()
    ]
