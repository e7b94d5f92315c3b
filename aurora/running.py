"""The stage that DVC runs: what dvc.yaml declares for it, held against what it reads and what is installed.

DVC watches what dvc.yaml declares, and nothing else. DVC_STAGE names the stage; where it is not set, as in a stage
that is run by hand, there is nothing that DVC could miss.
"""

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aurora.errors import ParamsError, ResourceError

MAP = Path("dvc.yaml")
VERSIONS = "versions.yaml"


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
    file = folder / VERSIONS
    names = declared if folder == Path() else _read(file) if stage and file.is_file() else ()
    if not names:
        return
    tracked = _read(file)
    for name in names:
        if name not in tracked:
            raise ParamsError(
                f"{file}: {name} is missing, which stage {stage} declares; add {name}: {installed(name)}"
            )
        if (found := installed(name)) != str(tracked[name]):
            raise ResourceError(
                f"{stage}: {name} {found} is installed, but {file} tracks {tracked[name]}; pip install"
                f" {name}=={tracked[name]}, or track {found} there and let DVC run what it changes"
            )


def installed(name: str) -> str:
    """The installed version of a distribution without its build (`+cpu`), or `none`."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "none"


def _declared() -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The running stage without its instance, its keys of params.yaml and of versions.yaml."""
    return _declared_by(os.environ.get("DVC_STAGE", ""), Path.cwd())


@cache
def _declared_by(name: str, root: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    stage, _, instance = name.partition("@")
    file = root / MAP
    entry = _read(file).get("stages", {}).get(stage) if stage and file.is_file() else None
    if not isinstance(entry, dict):
        return "", (), ()
    keys: list[str] = []
    versions: list[str] = []
    for item in entry.get("do", entry).get("params") or ():
        if isinstance(item, dict):
            versions += item.get(VERSIONS) or ()
        else:
            keys.append(item.replace("${key}", instance))
    return stage, tuple(keys), tuple(versions)


def _read(path: Path) -> dict:
    from aurora.yaml_files import read_yaml  # late: without a stage there is nothing to read

    return read_yaml(path)
