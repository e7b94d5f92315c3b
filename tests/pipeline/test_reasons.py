"""`aurora why` on a project of two stages: each kind of change is said in words, and nothing else is."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from aurora.commands.cli import main

DVC_YAML = """
stages:
  first:
    cmd: mkdir -p made && cp -r given made/copy
    deps: [given]
    params: [first, {versions.yaml: [shell]}]
    outs: [made]
  second:
    cmd: cp made/copy/a.txt result.txt
    deps: [made]
    outs: [result.txt]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "given").mkdir()
    for name in ("a", "b"):
        (folder / f"given/{name}.txt").write_text(name)
    (folder / "params.yaml").write_text("first: {rate: 1e-4, inner: {deep: x}}\nother: 1\n")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "versions.yaml").write_text(f"shell:\n  click: '{version('click')}'\n")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    dvc = str(Path(sys.executable).with_name("dvc"))
    subprocess.run([dvc, "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([dvc, "repro", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, "commit", "--quiet", "--message=run"], cwd=folder, check=True)
    return folder


def why(project: Path, monkeypatch: pytest.MonkeyPatch, *stages: str) -> list[str]:
    monkeypatch.chdir(project)
    done = CliRunner().invoke(main, ["why", *stages])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_nothing_changed(project: Path, monkeypatch: pytest.MonkeyPatch):
    assert why(project, monkeypatch) == ["every stage: up to date"]
    assert why(project, monkeypatch, "second") == ["second: up to date"]


def test_a_fresh_clone_is_one_line(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", project, clone], check=True)
    line = "no output is here yet; dvc pull brings them from a remote, dvc repro makes them"
    assert why(clone, monkeypatch) == [line]
    params = clone / "params.yaml"
    params.write_text(params.read_text().replace("1e-4", "2e-4"))
    assert why(clone, monkeypatch) == [line, "first would run:", "  params.yaml: first.rate from 0.0001 to 0.0002"]


@pytest.mark.parametrize(
    ("file", "before", "after", "line"),
    [
        ("params.yaml", "1e-4", "2e-4", "params.yaml: first.rate from 0.0001 to 0.0002"),
        ("params.yaml", "deep: x", "deep: null", "params.yaml: first.inner.deep from x to null"),
        ("params.yaml", "deep: x", "deep: x, more: 2", "params.yaml: first.inner.more is new: 2"),
        ("params.yaml", "rate: 1e-4, ", "", "params.yaml: first.rate is gone, was 0.0001"),
        ("given/b.txt", "b", "c", "given was edited: b.txt"),
        ("dvc.yaml", "mkdir -p made", "mkdir made", "its command in dvc.yaml was edited"),
        ("result.txt", "a", "z", "its output result.txt was edited"),
    ],
)
def test_a_change_is_said_in_words(
    project: Path, monkeypatch: pytest.MonkeyPatch, file: str, before: str, after: str, line: str
):
    path = project / file
    text = path.read_text()
    path.unlink()  # a link into DVC's cache, perhaps
    path.write_text(text.replace(before, after))
    try:
        lines = why(project, monkeypatch)
    finally:
        path.write_text(text)
    if file == "result.txt":
        assert lines == ["second would run:", f"  {line}"]
    else:
        assert lines == [
            "first would run:",
            f"  {line}",
            "second would run:",
            "  made may change, since first runs before",
        ]


def test_the_files_of_a_changed_folder_are_named(project: Path, monkeypatch: pytest.MonkeyPatch):
    path = project / "made/copy/b.txt"
    path.unlink()
    path.write_text("z")
    assert why(project, monkeypatch) == [
        "first would run:",
        "  its output made was edited",
        "second would run:",
        "  made was edited: copy/b.txt",
        "  made may change, since first runs before",
    ]
    path.write_text("b")


def test_a_stage_that_has_never_run_is_said_to_be_so(project: Path, monkeypatch: pytest.MonkeyPatch):
    (project / "dvc.yaml").write_text(
        f"{DVC_YAML}  third:\n    cmd: cp result.txt last.txt\n    deps: [result.txt]\n    outs: [last.txt]\n"
    )
    try:
        assert why(project, monkeypatch) == ["third would run:", "  dvc.lock knows no run of it"]
        (project / "given/b.txt").write_text("c")
        assert why(project, monkeypatch, "third")[-2:] == ["third would run:", "  dvc.lock knows no run of it"]
    finally:
        (project / "dvc.yaml").write_text(DVC_YAML)
        (project / "given/b.txt").write_text("b")


def test_what_dvc_yaml_lists_newly_was_not_edited(project: Path, monkeypatch: pytest.MonkeyPatch):
    text = DVC_YAML.replace("deps: [made]", "deps: [made, params.yaml]").replace("outs: [res", "outs: [more.txt, res")
    (project / "dvc.yaml").write_text(text)
    (project / "given/c").write_text("")
    try:
        assert why(project, monkeypatch, "second") == [
            "first would run:",
            "  given was edited: c",
            "second would run:",
            "  params.yaml is new in dvc.yaml",
            "  more.txt is new in dvc.yaml",
            "  made may change, since first runs before",
        ]
    finally:
        (project / "dvc.yaml").write_text(DVC_YAML)
        (project / "given/c").unlink()


def test_a_version_of_what_a_source_is_made_by_is_said(project: Path, monkeypatch: pytest.MonkeyPatch):
    (project / "given/versions.yaml").write_text("click: '1.0'\n")
    try:
        lines = why(project, monkeypatch, "first")
    finally:
        (project / "given/versions.yaml").unlink()
    assert lines[1:] == [
        "  given was edited: versions.yaml",
        f"  but would stop: click {version('click')} is installed, and given/versions.yaml tracks 1.0",
    ]


def test_a_parameter_that_no_stage_reads_is_no_reason(project: Path, monkeypatch: pytest.MonkeyPatch):
    path = project / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("other: 1", "other: 2"))
    assert why(project, monkeypatch) == ["every stage: up to date"]
    path.write_text(text)


def test_an_unknown_stage_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    done = CliRunner().invoke(main, ["why", "third"])
    assert done.exit_code == 1
    assert done.stderr == "error: dvc.yaml: no stage is named third; there are first, second\n"


def test_outside_the_root_of_a_repository(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["why"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no .dvc folder here")
    below = project / "below"
    below.mkdir(exist_ok=True)
    monkeypatch.chdir(below)
    done = CliRunner().invoke(main, ["why"])
    assert done.exit_code == 1
    assert done.stderr == "error: dvc.yaml: not found; run this in the root of the repository\n"


def test_a_version_is_said_and_that_the_stage_would_stop(project: Path, monkeypatch: pytest.MonkeyPatch):
    file, found = project / "versions.yaml", version("click")
    text = file.read_text()
    file.write_text("shell:\n  click: '1.0'\n")
    try:
        lines = why(project, monkeypatch, "first")
    finally:
        file.write_text(text)
    assert lines == [
        "first would run:",
        f"  versions.yaml: shell.click from {found} to 1.0",
        f"  but would stop: click {found} is installed, and versions.yaml tracks 1.0",
    ]


def test_a_lock_file_in_conflict_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    lock = project / "dvc.lock"
    text = lock.read_text()
    lock.write_text(f"<<<<<<< HEAD\n{text}=======\n>>>>>>> other\n")
    done = CliRunner().invoke(main, ["why"])
    lock.write_text(text)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: dvc.lock: holds git's conflict marks; restore one side by: ")
    assert done.stderr.count("\n") == 1


def test_a_cache_that_cannot_be_read_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    cache = project / ".dvc/cache"
    kept = cache.rename(project / ".dvc/kept")
    cache.symlink_to(cache)  # root may read everything else
    try:
        done = CliRunner().invoke(main, ["why"])
    finally:
        cache.unlink()
        kept.rename(cache)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: DVC: ") and "is the disk of the cache mounted" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_frozen_stage_is_said_to_be_so(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    graph, given = project / "dvc.yaml", project / "given/a.txt"
    graph.write_text(DVC_YAML.replace("  first:\n", "  first:\n    frozen: true\n"))
    given.write_text("other")
    try:
        done = CliRunner().invoke(main, ["why"])
    finally:
        graph.write_text(DVC_YAML)
        given.write_text("a")
    assert "first is frozen" in done.output and "dvc unfreeze first" in done.output
