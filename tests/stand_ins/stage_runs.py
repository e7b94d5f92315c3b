"""Stages run by the commands that dvc.yaml holds, in a folder of the test's own, without DVC."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent.parent


def run(folder: Path, *command: str, under: tuple[str, ...] = ()) -> str:
    """Runs Python with `command` in `folder`, `under` an emulator if one is given, and returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*under, sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fetch(folder: Path, params: dict, *names: str, under: tuple[str, ...] = ()) -> None:
    """Fetches these sources of `params`."""
    for name in names:
        section = "sources" if name in params["sources"] else "downloads"
        out = f"data/raw/{params[section][name]['kind']}/{name}"
        run(folder, "-m", "stages.fetch", name, "--section", section, "--out", out, under=under)


def stages(folder: Path, *names: str, under: tuple[str, ...] = ()) -> None:
    """Runs these stages of dvc.yaml by the commands that it holds."""
    content = read_yaml(ROOT / "dvc.yaml")["stages"]
    for name in names:
        stage, _, key = name.partition("@")
        entry = content[stage]
        command = entry.get("do", entry)["cmd"]
        if key:
            model = entry["foreach"][key]["model"]
            command = command.replace("${key}", key).replace("${item.model}", model)
        for word in command.split():
            if word.startswith("samples/"):
                (folder / word).parent.mkdir(exist_ok=True)
                copy = shutil.copytree if (ROOT / word).is_dir() else shutil.copy
                if not (folder / word).exists():
                    copy(ROOT / word, folder / word)
        run(folder, *command.split()[1:], under=under)


def read_yaml(path: Path) -> dict:
    """A YAML file as DVC reads it."""
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def write_params(folder: Path, params: dict) -> None:
    """Writes params.yaml into `folder`."""
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
