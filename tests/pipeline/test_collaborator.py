"""The way of a collaborator as docs/sharing.md gives it, typed command by command, and the real stages it runs."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from stand_ins.clones import (
    bytes_of,
    commands_under,
    commit,
    copy_tracked,
    dvc,
    edit,
    ran,
    restored,
    run,
    second_clone,
    use_remote,
)

pytestmark = pytest.mark.slow
ADDRESS, SHARED = "git@example.org:team/aurora.git", "/mnt/shared/aurora"  # of docs/sharing.md


def shorten(folder: Path) -> None:
    """Makes the real stages of the clone in `folder` quick: a tune of three steps, few questions and replies."""
    yaml, path = YAML(), folder / "params.yaml"
    params = yaml.load(path.read_text(encoding="utf-8"))
    params["sft"]["stop_after_steps"] = 3
    params["merge"]["drift"]["rows"] = 2
    for task in params["eval"]["tasks"].values():
        task["limit"] = 1
    params["eval"]["loss_rows"] = 4
    params["eval"]["replies"] |= {"prompts": 2, "max_new_tokens": 4, "batch_size": 2}
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


@pytest.fixture
def first(root: Path, tmp_path: Path) -> Path:
    """The first person's clone of a shared repository, with the real stages, shortened; nothing has run."""
    folder = tmp_path / "first"
    copy_tracked(root, folder)
    shorten(folder)
    (folder / "dvc.lock").unlink()
    commit(folder, "short")
    run(tmp_path, "git", "clone", "--quiet", "--bare", str(folder), "shared.git")
    run(folder, "git", "remote", "add", "origin", str(tmp_path / "shared.git"))
    run(folder, "git", "push", "--quiet", "--set-upstream", "origin", "main")
    return folder


def test_real_stages_travel(first: Path, tmp_path: Path):
    use_remote(first, "../remote", {"verify": "true"})
    made = ran(dvc(first, "repro", "format", PYTHONPATH=str(first)))
    assert "format" in made and len(made) == 10
    commit(first, "run")
    dvc(first, "push", "--run-cache", "format", "clean", "fetch")
    second = second_clone(first, tmp_path / "second")
    dvc(second, "pull", "fetch", "clean", "format")
    assert bytes_of(second, "data") == bytes_of(first, "data")
    assert ran(dvc(second, "repro", "format")) == []
    third = second_clone(first, tmp_path / "third")
    (third / "dvc.lock").unlink()
    printed = dvc(third, "repro", "--pull", "format")
    assert (ran(printed), restored(printed)) == ([], made)
    assert bytes_of(third, "data", "dvc.lock") == bytes_of(first, "data", "dvc.lock")


def test_a_collaborators_day_of_the_docs(root: Path, first: Path, tmp_path: Path):
    """Every line is typed as it stands; this machine's paths stand in for the addresses and for the environment."""
    stand_ins = {SHARED: str(tmp_path / "remote"), "make environment": f"ln -s {sys.prefix} .venv"}

    def typed(folder: Path, heading: str) -> str:
        script = "\n".join(commands_under(root, heading))
        for name, stand_in in stand_ins.items():
            script = script.replace(name, stand_in)
        said = "".join(f"echo {shlex.quote(f'$ {line}')}\n{line}\n" for line in script.splitlines())
        (tmp_path / "typed.sh").write_text(f"set -euo pipefail\n{said}")
        return run(
            folder,
            "bash",
            str(tmp_path / "typed.sh"),
            PYTHONPATH=".",
            GIT_CONFIG_COUNT="1",
            GIT_CONFIG_KEY_0=f"url.{tmp_path}/shared.git.insteadOf",
            GIT_CONFIG_VALUE_0=ADDRESS,
        )

    assert len(ran(dvc(first, "repro", PYTHONPATH=str(first)))) == 16
    commit(first, "run")
    typed(first, "# Share and compare")
    printed = typed(tmp_path, "## A collaborator's day")
    second = tmp_path / "aurora"
    steps = dict(re.findall(r"(?ms)^\$ ([^\n]+)\n(.*?)(?=^\$ |\Z)", printed))
    repeated = re.findall(r"(?ms)^\$ dvc repro\n(.*?)(?=^\$ |\Z)", printed)
    assert [ran(text) for text in repeated] == [[], ["eval@tuned", "merge", "report", "sft"]]
    assert "sft.learning_rate" in steps["aurora why sft"]
    assert "metrics/tuned.json" in steps["dvc metrics diff main"]
    assert "95 % interval" in steps["aurora compare main slower"]
    assert "params.yaml" in steps["git diff main --stat"]
    assert (second / "dvc_plots/index.html").is_file()
    assert run(second, "git", "status", "--porcelain", "--untracked-files=no") == ""
    run(first, "git", "pull", "--quiet")
    run(first, "git", "switch", "--quiet", "slower")
    dvc(first, "pull")
    assert bytes_of(first, "models", "metrics") == bytes_of(second, "models", "metrics")
    assert ran(dvc(first, "repro")) == []
    edit(first, "params.yaml", r"(?m)^  learning_rate: 2e-3", "  learning_rate: 5e-3")
    assert "Running stage 'sft'" not in dvc(first, "repro")  # main's tune comes out of the run cache
