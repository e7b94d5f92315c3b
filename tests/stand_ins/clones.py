"""Clones of the working tree, and the project's own graph with small commands in place of its stages."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

DVC = str(Path(sys.executable).with_name("dvc"))
STAND_IN = Path(__file__).with_name("stand_in.py")


def surroundings(**more: str) -> dict[str, str]:
    """The environment with this interpreter's commands first, a git user, and no credentials but those in `more`."""
    left_out = ("AWS_", "SSH_AUTH", "MAKE", "MFLAGS")  # make says other things where make has started it
    found = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    for role in ("AUTHOR", "COMMITTER"):
        found |= {f"GIT_{role}_NAME": "Test", f"GIT_{role}_EMAIL": "test@example.org"}
    return found | {"HF_HUB_OFFLINE": "1", "AWS_EC2_METADATA_DISABLED": "true"} | more


def run(folder: Path, *command: str, returncode: int | None = 0, answer: str = "", **environment: str) -> str:
    """Runs a command, tells it `answer`, and returns what it printed on both streams.

    `returncode` None: any but 0.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=surroundings(**environment),
        input=answer,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    as_expected = done.returncode != 0 if returncode is None else done.returncode == returncode
    assert as_expected, f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


def commit(folder: Path, message: str) -> None:
    """Commits all that git sees."""
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", f"--message={message}")


def copy_tracked(root: Path, folder: Path) -> Path:
    """The working tree's tracked files, as they are now, committed on a branch `main` of a repository of its own.

    Returns `folder`. The test is skipped where the working tree is no checkout of git.
    """
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    names = run(root, "git", "ls-files", "-z").split("\0")
    for name in filter(None, names):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    run(folder, "git", "init", "--quiet", "--initial-branch=main")
    commit(folder, "fresh")
    return folder


def use_remote(folder: Path, url: str, options: dict[str, str], secrets: dict[str, str] | None = None) -> None:
    """Makes `url` the remote, with its options in .dvc/config and its secrets in .dvc/config.local."""
    (folder / ".dvc/config.local").unlink(missing_ok=True)
    dvc(folder, "remote", "add", "--force", "--default", "shared", url)
    for name, value in options.items():
        dvc(folder, "remote", "modify", "shared", name, value)
    for name, value in (secrets or {}).items():
        dvc(folder, "remote", "modify", "--local", "shared", name, value)


def second_clone(first: Path, folder: Path) -> Path:
    """What another person gets by git alone."""
    run(first, "git", "clone", "--quiet", str(first), str(folder))
    return folder


def dvc(folder: Path, *command: str, returncode: int | None = 0, **environment: str) -> str:
    """Runs DVC."""
    return run(folder, DVC, *command, returncode=returncode, **environment)


def ran(printed: str) -> list[str]:
    """Stages that `dvc repro` ran, by what it printed, in the order of their names."""
    return sorted(re.findall(r"Running stage '([^']+)'", printed))


def restored(printed: str) -> list[str]:
    """Stages whose outputs came out of the run cache."""
    return sorted(re.findall(r"Stage '([^']+)' is cached - skipping run", printed))


def bytes_of(folder: Path, *names: str) -> dict[str, bytes]:
    """Content of every file below these folders or files, by its path."""
    paths = [path for name in names for path in ((folder / name), *(folder / name).rglob("*"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def docs(root: Path) -> str:
    """All pages of docs/, one behind the other."""
    return "".join(f"\n{path.read_text(encoding='utf-8')}" for path in sorted((root / "docs").glob("*.md")))


def commands_under(root: Path, heading: str) -> list[str]:
    """The lines of the first block of code under a heading of the docs."""
    text = docs(root).partition(f"\n{heading}\n")[2]
    return text.partition("```\n")[2].partition("```")[0].splitlines()


def edit(folder: Path, file: str, before: str, after: str) -> None:
    """Replaces the one place of `file` that the pattern `before` finds."""
    path = folder / file
    text, count = re.subn(before, after, path.read_text(encoding="utf-8"))
    assert count == 1, f"{before} is {count} times in {file}"
    path.write_text(text, encoding="utf-8")


def with_small_commands(folder: Path, sizes: dict[str, int] | None = None) -> None:
    """Gives every stage of the clone in `folder` a command that writes its outputs in no time (tests/stand_in.py).

    Graph, dependencies, parameters and outputs stay those of dvc.yaml. `sizes` gives the bytes of the files below
    an output, 1,000 where it is silent.
    """
    reader = YAML()
    path = folder / "dvc.yaml"
    content = reader.load(path.read_text(encoding="utf-8"))
    for name, entry in content["stages"].items():
        if "do" in entry:
            entry["do"]["cmd"] = f"python stand_in.py {name}@${{key}}"
        else:
            entry["cmd"] = f"python stand_in.py {name}"
    with path.open("w", encoding="utf-8") as file:
        reader.dump(content, file)
    shutil.copyfile(STAND_IN, folder / "stand_in.py")
    (folder / "stand_in.json").write_text(json.dumps(_table(folder, sizes or {}), indent=1), encoding="utf-8")
    (folder / "dvc.lock").unlink(missing_ok=True)
    commit(folder, "small commands")


def outputs(folder: Path) -> list[str]:
    """The files that the stages of the clone in `folder` are to write."""
    return sorted(name for entry in _table(folder, {}).values() for name in entry["writes"])


def _table(folder: Path, sizes: dict[str, int]) -> dict[str, dict]:
    """For each stage what it reads and the files it is to write: outputs, and what other stages read below them."""
    with chdir(folder):
        repo = Repo()
        stages = {stage.addressing: stage for stage in repo.index.stages}
        repo.close()
    read = {dep.def_path for stage in stages.values() for dep in stage.deps if dep not in stage.params}
    read |= set(YAML(typ="safe").load((folder / "dvc.yaml").read_text(encoding="utf-8"))["metrics"])
    table = {}
    for name, stage in stages.items():
        outs = [out.def_path for out in stage.outs]
        files = {}
        for out in outs:
            inside = [path for path in read if path.startswith(f"{out}/")]
            found = [out] if Path(out).suffix else [*inside, f"{out}/weights.bin"]
            files |= {file: sizes.get(out, 1000) for file in sorted(found)}
        table[name] = {
            "reads": sorted(dep.def_path for dep in stage.deps if dep not in stage.params),
            "params": {dep.def_path: sorted(dep.params) for dep in stage.params},
            "writes": files,
        }
    return table
