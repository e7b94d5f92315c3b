"""The doctor names what is wrong with an installation, and what to do about it."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from dvc.repo import Repo
from stand_ins.training_case import write_params

from aurora.commands import doctor
from aurora.commands.cli import main
from aurora.core.errors import ParamsError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A repository of DVC's with params.yaml and nothing else."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    Repo.init(no_scm=True).close()
    return tmp_path


def test_pins_that_are_not_kept_are_faults():
    found = {
        finding.name: finding for finding in doctor.versions(["click==0.1", "no-such-package==1", "numpy"])
    }
    assert found["click"].fault and "pinned 0.1" in found["click"].found
    assert "pip install click==0.1" in found["click"].remedy
    assert found["no-such-package"].fault and found["no-such-package"].remedy == "make environment"
    assert not found["numpy"].remedy and not found["python"].remedy


def test_pins_are_those_of_the_checkout(folder: Path):
    assert "torch" in {finding.name for finding in doctor.versions()}  # of the installation
    text = '[project]\ndependencies = ["click==0.1"]\n[project.optional-dependencies]\nmore = ["no-such-package==1"]\n'
    (folder / "pyproject.toml").write_text(text)
    found = {finding.name: finding for finding in doctor.versions()}
    assert found.keys() == {"python", "click"} and found["click"].fault
    (folder / "pyproject.toml").write_text("[project")
    with pytest.raises(
        ParamsError, match=r"pyproject\.toml: no \[project\] to read .*git checkout pyproject\.toml"
    ):
        list(doctor.versions())


def test_a_local_build_of_torch_is_the_pinned_one():
    import torch

    public = torch.__version__.partition("+")[0]
    (_, found) = doctor.versions([f"torch=={public}"])
    assert not found.fault


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


def test_the_remote_is_shown_without_its_secret(folder: Path):
    found = {finding.name: finding for finding in doctor.sharing()}
    assert found["dvc remote"].found == "none" and "dvc remote add" in found["dvc remote"].remedy
    with Repo() as repo, repo.config.edit("local") as config:
        config["remote"]["far"] = {"url": "https://name:secret@host/path"}
        config["core"]["remote"] = "far"
    found = {finding.name: finding for finding in doctor.sharing()}
    assert found["dvc remote"].found == "far (https://host/path)" and not found["dvc remote"].remedy


def test_a_remote_whose_files_are_not_verified_is_said(folder: Path):
    assert "dvc verify" not in {finding.name for finding in doctor.sharing()}
    for verify in (False, True):
        with Repo() as repo, repo.config.edit() as config:
            config["remote"]["far"] = {"url": "/far", "verify": verify}
            config["core"]["remote"] = "far"
        found = {finding.name: finding for finding in doctor.sharing()}
        assert ("dvc verify" in found) is not verify
        assert verify or found["dvc verify"].remedy == "dvc remote modify far verify true"


def test_the_first_link_that_works_is_taken_and_nothing_stays(tmp_path: Path, monkeypatch):
    cache, workspace = tmp_path / "cache", tmp_path / "workspace"
    workspace.mkdir()
    assert doctor.link_type(cache, "hardlink,symlink", workspace) == "hardlink"
    assert doctor.link_type(cache, ["symlink", "hardlink"], workspace) == "symlink"
    assert doctor.link_type(cache, ["copy", "hardlink"], workspace) == "copy"

    def refuse(*_: str) -> None:
        raise OSError("other file system")

    monkeypatch.setattr("dvc_objects.fs.system.hardlink", refuse)
    assert doctor.link_type(cache, "hardlink,symlink", workspace) == "symlink"
    monkeypatch.setattr("dvc_objects.fs.system.symlink", refuse)
    assert doctor.link_type(cache, "hardlink,symlink", workspace) == "copy"
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
    (finding,) = doctor.sharing()
    assert finding.fault and finding.remedy == "run this in the root of the repository"
