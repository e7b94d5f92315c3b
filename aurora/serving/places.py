"""Models by name: `base`, `tuned` and `adapter` as dvc.yaml has them, adapters that sft kept (`step-STEP`), checkpoints
of an unfinished training (`checkpoint-STEP`), or a folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from aurora.adapter.config import CONFIG
from aurora.adapter.record import check_base
from aurora.core.declared import DVC_YAML, FETCH_BASE
from aurora.core.errors import ModelError
from aurora.core.files import dvc_hash
from aurora.core.yaml_files import read_yaml

DVC_LOCK = Path("dvc.lock")
UNFINISHED = Path(".aurora/sft")
PRODUCERS = {"base": FETCH_BASE, "tuned": "merge", "adapter": "sft"}


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """A model on the disk: a folder of its own, or an adapter and its base."""

    name: str
    folder: Path
    base: Path | None  # of an adapter
    dvc_hash: str | None  # as dvc.lock has it; that of an adapter is computed

    @property
    def model(self) -> Path:
        """The folder with weights, config and tokeniser."""
        return self.base or self.folder


def stage_options(stage: str) -> dict[str, Path]:
    """The paths that a stage's command names, by option: `--base data/…` as `base`; empty outside a project."""
    if not DVC_YAML.is_file():
        return {}
    command = read_yaml(DVC_YAML)["stages"][stage]["cmd"]
    return {name: Path(value) for name, value in re.findall(r"--([a-z-]+) (\S+)", command)}


def project_folders() -> dict[str, Path]:
    """The folders of base, tuned, adapter and kept adapters, from dvc.yaml; empty outside a project."""
    options = stage_options("merge")
    names = {"base": "base", "tuned": "merged", "adapter": "adapter"}
    folders = {name: options[option] for name, option in names.items() if option in options}
    kept = stage_options("sft").get("checkpoints", Path("models/checkpoints")) if folders else Path()
    return folders | {path.name: path for path in sorted(kept.glob("step-*"), key=lambda path: int(path.name[5:]))}


def find_model(name: str) -> ModelPlace:
    """The model of this name, or the folder of this path. Raises ModelError where nothing is there, or no base."""
    folders = project_folders()
    folder = folders.get(name) or _checkpoint(name) or Path(name)
    if not folder.is_dir():
        remedy = f"it is written by: dvc repro {PRODUCERS.get(name, 'sft')}" if name in folders else _known(folders)
        raise ModelError(f"{folder}: no such folder; {remedy}")
    label = name if name in folders else folder.resolve().name
    if not (folder / CONFIG).is_file():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: neither a model (config.json) nor an adapter ({CONFIG}); give another")
        return ModelPlace(label, folder, None, locked_hash(folder))
    base = folders.get("base")
    if base is None or not base.is_dir():
        raise ModelError(
            f"{folder}: an adapter, and its base is not at {base or 'data/raw/model/base'}; "
            f"fetch it by: dvc repro {FETCH_BASE}"
        )
    check_base(folder, base)
    return ModelPlace(label, folder, base, dvc_hash(folder))


def _checkpoint(name: str) -> Path | None:
    # Newest run first; a name that occurs in several runs means the newest.
    if not re.fullmatch(r"checkpoint-\d+", name):
        return None
    found = sorted(UNFINISHED.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _known(folders: dict[str, Path]) -> str:
    steps = sorted({path.name for path in UNFINISHED.glob("*/checkpoint-*")})
    return f"give {', '.join([*folders, *steps, 'or a folder'])}"


def locked_hash(path: Path) -> str | None:
    """The hash of an output in dvc.lock; None where there is none."""
    if not DVC_LOCK.is_file():
        return None
    for stage in (read_yaml(DVC_LOCK).get("stages") or {}).values():
        for out in stage.get("outs") or ():
            if out["path"] == path.as_posix():
                return out.get("md5")
    return None
