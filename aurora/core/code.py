"""Hashes of this project's own code, by which unfinished work is found again only by the code that began it."""

import hashlib
from pathlib import Path

from aurora.core.declared import DVC_YAML
from aurora.core.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]


def code_of(stage: str) -> list[Path]:
    """The rooms and scripts that dvc.yaml lists as deps of a stage, relative to the repository."""
    entry = read_yaml(ROOT / DVC_YAML)["stages"][stage]
    deps = entry.get("do", entry)["deps"]
    return sorted(Path(dep) for dep in deps if dep.startswith(("aurora/", "stages/")))


def code_hash(*places: Path | str) -> str:
    """SHA-256 in hex over the names and bytes of all files in these rooms or scripts, relative to the repository."""
    digest = hashlib.sha256()
    for place in places:
        path = ROOT / place
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                digest.update(f"{content}  {file.relative_to(ROOT).as_posix()}\n".encode())
    return digest.hexdigest()
