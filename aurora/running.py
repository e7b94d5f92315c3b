"""The stage that DVC runs: what dvc.yaml declares for it, held against what it reads and what is installed.

DVC watches what dvc.yaml declares, and nothing else. DVC_STAGE names the stage; where it is not set, as in a stage
that is run by hand, there is nothing that DVC could miss.
"""

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aurora.errors import ParamsError, ResourceError
from aurora.yaml_files import read_yaml

MAP = Path("dvc.yaml")
ABSENT = "none"  # as a version
VERSIONS = "versions.yaml"
# Extras of pyproject.toml, which shape bytes only where params.yaml asks for them; the stage then says if one is absent.
OPTIONAL = frozenset({"torchao"})
# The base's stage, as dvc repro takes it: an instance of fetch, or of fetch_hub.
FETCH_BASE = "--glob 'fetch*@base'"


def require_declared(key: str) -> None:
    """Raises ParamsError where the running stage does not declare this key of params.yaml."""
    stage, keys, _ = _declared()
    if stage and not any(key == item or key.startswith(f"{item}.") for item in keys):
        raise ParamsError(
            f"{MAP}: stage {stage} reads {key}, which it does not declare; add - {key} to its params"
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
    for name in tracked if of_folder else declared:
        if name not in tracked:
            raise ParamsError(
                f"{file}: {name} is missing, which stage {stage} declares; add {name}: {installed(name)}"
            )
        if found := other_version(name, tracked[name]):
            raise ResourceError(
                f"{stage}: {name} {found} is installed, but {file} tracks {tracked[name]}; pip install"
                f" {name}=={tracked[name]}, or track {found} there and let DVC run what it changes"
            )


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
    """The running stage without its instance, its keys of params.yaml and of versions.yaml."""
    return _declared_by(os.environ.get("DVC_STAGE", ""), Path.cwd())


@cache
def _declared_by(name: str, root: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    stage, _, instance = name.partition("@")
    file = root / MAP
    entry = read_yaml(file).get("stages", {}).get(stage) if stage and file.is_file() else None
    if not isinstance(entry, dict):
        return "", (), ()
    keys, versions = declared_params(entry.get("do", entry))
    return stage, tuple(key.replace("${key}", instance) for key in keys), tuple(versions)


def declared_params(entry: dict) -> tuple[list[str], list[str]]:
    """The keys of params.yaml and of versions.yaml that a stage of dvc.yaml declares, as they stand there."""
    items = entry.get("params") or ()
    files = [item for item in items if isinstance(item, dict)]
    return [item for item in items if isinstance(item, str)], [
        name for file in files for name in file.get(VERSIONS) or ()
    ]
