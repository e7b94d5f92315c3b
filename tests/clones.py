"""Fresh clones of the working tree, and commands that run in them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DVC = str(Path(sys.executable).with_name("dvc"))


def run(folder: Path, *command: str, returncode: int = 0) -> str:
    """What a command prints, which must end with this status."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == returncode, done.stdout + done.stderr
    return done.stdout


def clone_of(root: Path, folder: Path) -> Path:
    """A clone of the working tree's tracked files, committed on a branch `main`."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    names = run(root, "git", "ls-files", "-z").split("\0")
    for name in filter(None, names):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    run(folder, "git", "init", "--quiet", "--initial-branch=main")
    run(folder, "git", "add", "--all")
    user = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    run(folder, "git", *user, "commit", "--quiet", "--message=fresh")
    return folder
