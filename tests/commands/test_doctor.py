"""The doctor names what is wrong with an installation, and what to do about it."""

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from dvc.repo import Repo
from stand_ins.training_case import write_params

from aurora.commands import doctor, findings
from aurora.commands.cli import main
from aurora.core.errors import ParamsError
from aurora.core.locks import locked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A repository of DVC's with params.yaml and nothing else."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    Repo.init(no_scm=True).close()
    return tmp_path


def test_pins_that_are_not_kept_are_faults():
    found = {finding.name: finding for finding in doctor.versions(["click==0.1", "no-such-package==1", "numpy"])}
    assert found["click"].fault and "pinned 0.1" in found["click"].found
    assert "pip install click==0.1" in found["click"].remedy
    assert found["no-such-package"].fault and found["no-such-package"].remedy == "make environment"
    assert found["packages"].found == "1 as pinned"
    assert not found["packages"].remedy and not found["python"].remedy


def test_pins_are_those_of_the_checkout(folder: Path):
    (counted,) = (finding for finding in doctor.versions() if finding.name == "packages")
    assert int(counted.found.split()[0]) > 20  # of the installation
    text = '[project]\ndependencies = ["click==0.1"]\n[project.optional-dependencies]\nmore = ["no-such-package==1"]\n'
    (folder / "pyproject.toml").write_text(text)
    found = {finding.name: finding for finding in doctor.versions()}
    assert found.keys() == {"python", "packages", "click"} and found["click"].fault
    (folder / "pyproject.toml").write_text("[project")
    with pytest.raises(ParamsError, match=r"pyproject\.toml: no \[project\] to read .*git checkout pyproject\.toml"):
        list(doctor.versions())


def test_a_local_build_of_torch_is_the_pinned_one():
    import torch

    public = torch.__version__.partition("+")[0]
    (_, found) = doctor.versions([f"torch=={public}", f"torch=={public}"])
    assert (found.name, found.found, found.fault) == ("packages", "1 as pinned", False)


def test_what_params_ask_for_and_the_machine_lacks_is_a_fault_with_its_remedy(folder: Path, monkeypatch):
    (finding,) = doctor.asked()
    assert not finding.fault
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    write_params(folder, precision="fp16")
    (finding,) = doctor.asked()
    assert finding.fault and "fp16 needs a card" in finding.found and finding.remedy == "set fp32 or bf16"


def test_a_full_disk_is_a_fault(folder: Path, monkeypatch):
    usage = doctor.shutil.disk_usage(folder)
    monkeypatch.setattr("aurora.commands.doctor.shutil.disk_usage", lambda _: usage._replace(free=1))
    (finding,) = doctor.disk()
    assert finding.fault and finding.remedy.startswith("free some space")


def use_remote(url: str, **settings: object) -> None:
    with Repo() as repo, repo.config.edit("local") as config:
        config["remote"]["far"] = {"url": url, **settings}
        config["core"]["remote"] = "far"


def shared() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings.sharing()}


def test_the_remote_is_shown_without_its_secret(folder: Path):
    found = shared()
    assert found["dvc remote"].found == "none" and "dvc remote add" in found["dvc remote"].remedy
    use_remote("https://name:secret@127.0.0.1:9/path")
    found = shared()
    assert found["dvc remote"].fault and found["dvc remote"].found.startswith("far (https://127.0.0.1:9/path) takes no")


def test_a_remote_and_a_cache_are_written_to(folder: Path, tmp_path: Path):
    far = tmp_path / "far"
    use_remote(str(far))
    assert shared()["dvc remote"].fault and "is not there" in shared()["dvc remote"].found
    far.mkdir()
    found = shared()
    assert found["dvc remote"].found == f"far ({far}) takes a file" and not found["dvc remote"].remedy
    assert not [path for path in far.rglob("*") if path.is_file()]


def test_a_cache_that_takes_no_file_is_a_fault_and_no_folder_is_made(folder: Path, tmp_path: Path):
    disk = tmp_path / "disk/cache"
    with Repo() as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = str(disk)
    found = shared()["dvc cache"]
    assert found.fault and found.found == f"{disk} is not there" and f"mkdir -p {disk}" in found.remedy
    assert not disk.parent.exists()
    disk.mkdir(parents=True)
    (disk / "files").write_text("")  # root may write everywhere, but not below a file
    found = shared()["dvc cache"]
    assert found.fault and "no stage could hand over its outputs" in found.found


def test_a_remote_whose_files_are_not_verified_is_said(folder: Path, tmp_path: Path):
    assert "dvc verify" not in shared()
    for verify in (False, True):
        use_remote(str(tmp_path), verify=verify)
        found = shared()
        assert ("dvc verify" in found) is not verify
        assert verify or found["dvc verify"].remedy == "dvc remote modify far verify true"


def test_a_folder_that_several_share_is_open_to_their_group(tmp_path: Path):
    below = tmp_path / "files/md5/00"
    below.mkdir(parents=True)
    tmp_path.chmod(0o755)
    assert not list(findings.shared_folder(tmp_path))  # one user's own
    tmp_path.chmod(0o2775)
    before = os.umask(0o022)
    try:
        closed, umask = findings.shared_folder(tmp_path)
        assert closed.fault and str(below) in closed.found and "chmod g+s" in closed.remedy
        assert umask.found.startswith("022: ") and umask.remedy.startswith("umask 002")
        subprocess.run(["bash", "-c", closed.remedy.replace("GROUP", str(os.getgid()))], check=True)
        os.umask(0o002)
        assert not list(findings.shared_folder(tmp_path))
    finally:
        os.umask(before)


def test_links_to_nothing_and_frozen_stages_are_named(folder: Path):
    Path("dvc.yaml").write_text("stages:\n  one: {cmd: x, frozen: true, outs: [made]}\n")
    Path("made").mkdir()
    Path("made/a").symlink_to("/gone")
    found = shared()
    assert found["dangling links"].fault and "made/a" in found["dangling links"].found
    assert found["frozen stage"].remedy == "dvc unfreeze one"


def test_a_training_that_runs_is_not_to_be_removed(folder: Path):
    (folder / ".aurora/sft/0123").mkdir(parents=True)
    with locked(folder / ".aurora/sft/lock"):
        (found,) = findings.unfinished()
    assert found.name == "running sft" and str(os.getpid()) in found.found and not found.remedy
    (folder / ".aurora/sft/0123.finished").write_text("{}")
    (found,) = findings.unfinished()
    assert found.name == "finished sft" and "rm -r" not in found.remedy


def test_the_first_link_that_works_is_taken_and_nothing_stays(tmp_path: Path, monkeypatch):
    cache, workspace = tmp_path / "cache", tmp_path / "workspace"
    workspace.mkdir()
    assert findings.link_type(cache, "hardlink,symlink", workspace) == "hardlink"
    assert findings.link_type(cache, ["symlink", "hardlink"], workspace) == "symlink"
    assert findings.link_type(cache, ["copy", "hardlink"], workspace) == "copy"

    def refuse(*_: str) -> None:
        raise OSError("other file system")

    monkeypatch.setattr("dvc_objects.fs.system.hardlink", refuse)
    assert findings.link_type(cache, "hardlink,symlink", workspace) == "symlink"
    monkeypatch.setattr("dvc_objects.fs.system.symlink", refuse)
    assert findings.link_type(cache, "hardlink,symlink", workspace) == "copy"
    assert not list(cache.iterdir()) and not list(workspace.iterdir())


def test_the_command_fails_with_the_number_of_faults(folder: Path, monkeypatch):
    (folder / ".aurora/sft/0123/checkpoints").mkdir(parents=True)
    monkeypatch.setattr(
        "aurora.commands.doctor.versions", lambda: iter([doctor.Finding("click", "0.1", "update", True)])
    )
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1 and done.stderr == "1 faults\n"
    assert "FAULT click" in done.stdout and "-> update" in done.stdout
    assert "rm -r .aurora/sft/0123" in done.stdout
    monkeypatch.setattr("aurora.commands.doctor.versions", lambda: iter([]))
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0


def test_outside_of_a_repository_it_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (finding,) = findings.sharing()
    assert finding.fault and finding.remedy == "run this in the root of the repository"
