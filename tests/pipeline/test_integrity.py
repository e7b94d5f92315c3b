"""`aurora verify` finds every flipped bit, in the work tree, the cache and the remote, and each remedy it names works."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from stand_ins.clones import DVC, commit, dvc, ran, run

from aurora.commands.cli import main

pytestmark = pytest.mark.minutes

DVC_YAML = """
stages:
  first:
    cmd: mkdir -p made && cp given.txt made/a.txt && echo b > made/b.txt
    deps: [given.txt]
    outs: [made]
  second:
    cmd: cp made/a.txt result.txt && mkdir -p told && cp made/b.txt told/c.txt
    deps: [made]
    outs: [result.txt, {told: {cache: false}}]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two stages that has run and is pushed."""
    folder = tmp_path_factory.mktemp("integrity") / "finished"
    folder.mkdir()
    for name, text in {"dvc.yaml": DVC_YAML, "given.txt": "aurora\n", ".gitignore": "/made\n/result.txt\n"}.items():
        (folder / name).write_text(text)
    run(folder, "git", "init", "--quiet")
    dvc(folder, "init", "--quiet")
    dvc(folder, "config", "cache.type", "hardlink,symlink")
    dvc(folder, "remote", "add", "--default", "shared", str(folder.with_name("remote")))
    dvc(folder, "repro", "--quiet")
    commit(folder, "run")
    dvc(folder, "push", "--quiet")
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A clone with all outputs and a remote of its own."""
    folder = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(finished), str(folder))
    shutil.copytree(finished.with_name("remote"), tmp_path / "remote")
    dvc(folder, "remote", "modify", "--local", "shared", "url", str(tmp_path / "remote"))
    dvc(folder, "pull", "--quiet")
    monkeypatch.chdir(folder)
    yield folder


def flip(path: Path) -> None:
    """Flips a bit in place and keeps size and time."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def unlinked(path: Path) -> Path:
    """The file as one of its own, no link into the cache."""
    content, before = path.read_bytes(), path.stat()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


def verify(*words: str) -> Result:
    return CliRunner().invoke(main, ["verify", *words])


def the_fault(*words: str) -> str:
    done = verify(*words)
    assert done.exit_code == 1 and done.stderr.count("\n") == 1, done.output
    return done.stderr


def test_what_is_whole_has_no_fault_and_links_are_read_once(project: Path):
    done = verify("--remote")
    assert done.exit_code == 0 and done.stderr == ""
    # a.txt and result.txt are links to one object, b.txt to another; told/c.txt git tracks
    assert re.search(r"^verified [23] files, 0\.00 GiB, 3 objects of the remote: 0 faults$", done.stdout, re.M)


def test_a_flipped_bit_that_dvc_does_not_see_is_found_and_the_remedy_works(project: Path):
    flip(project / "made/a.txt")
    assert "up to date" in dvc(project, "status")
    done = verify()
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all("damaged, in the cache too; rm -f " in line for line in lines)
    for line in lines:
        remedy = line.partition("; ")[2].partition(", or without")[0]
        run(project, "bash", "-c", remedy.replace("&& dvc ", f"&& {DVC} "))
    again = verify()
    assert again.exit_code == 0, again.stderr


def test_a_damaged_copy_comes_back_from_the_cache(project: Path):
    flip(unlinked(project / "made/b.txt"))
    fault = the_fault()
    assert "made/b.txt: damaged; the cache has it whole: rm made/b.txt && dvc checkout made" in fault
    (project / "made/b.txt").unlink()
    dvc(project, "checkout", "made")
    again = verify()
    assert again.exit_code == 0, again.stderr


def test_a_damaged_object_or_listing_of_the_cache_is_found(project: Path):
    unlinked(project / "made/b.txt")
    (object_,) = (
        path for path in (project / ".dvc/cache/files").rglob("*") if path.is_file() and path.read_bytes() == b"b\n"
    )
    flip(object_)
    assert "damaged, the cache's copy of made/b.txt; rm -f " in the_fault()
    flip(object_)
    (listing,) = (project / ".dvc/cache/files").rglob("*.dir")
    flip(listing)
    assert "the listing of made is damaged; rm -f " in the_fault()


def test_what_git_tracks_is_held_against_the_lock_too(project: Path):
    (project / "told/c.txt").write_text("edited")
    assert "told" in the_fault() and "git diff told" in the_fault()


def test_a_file_beside_those_of_the_lock_is_named(project: Path):
    (project / "made/more.txt").write_text("")
    assert "made/more.txt: dvc.lock does not record it; remove it" in the_fault()


def test_what_is_not_here_is_no_fault_but_said(project: Path):
    shutil.rmtree(project / "made")
    done = verify()
    assert done.exit_code == 0 and "not in the work tree: made; to bring them: dvc pull" in done.stdout


@pytest.mark.parametrize("kind", ["damaged", "missing"])
def test_a_remote_object_is_read(project: Path, kind: str):
    (object_,) = (
        path for path in project.with_name("remote").rglob("*") if path.is_file() and path.read_bytes() == b"b\n"
    )
    flip(object_) if kind == "damaged" else object_.unlink()
    again = verify()
    assert again.exit_code == 0, again.stderr
    fault = the_fault("--remote")
    assert kind in fault and "made/b.txt" in fault and "dvc push first" in fault
    there = fault.partition("delete there ")[2].partition(", and from")[0].split(" and ")
    assert len(there) == 1 + (kind == "damaged")
    for name in there:
        Path(name).unlink()
    assert ran(dvc(project, "push")) == [] and verify("--remote").exit_code == 0


def test_a_remote_that_is_not_there_is_one_line(project: Path):
    done = verify("--remote", "far")
    assert done.exit_code == 1 and done.stderr.startswith("error: DVC remote: ") and done.stderr.count("\n") == 1
