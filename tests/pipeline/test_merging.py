"""Two branches that have both run stages: git stops, `aurora merge` goes on, and dvc.lock never says what never ran."""

import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from stand_ins.clones import commit, dvc, edit, ran, run

from aurora.pipeline.lock_file import merged_records

pytestmark = pytest.mark.minutes

ROOT = Path(__file__).parent.parent.parent
DVC_YAML = """
stages:
  fetch:
    cmd: mkdir -p got && cp rows.txt got/ && echo fetched >> ../fetched.log
    deps: [rows.txt]
    outs: [got]
  clean:
    cmd: mkdir made && cp got/rows.txt made/ && grep -c . got/rows.txt > made/count.txt
    deps: [got]
    params: [clean]
    outs: [made]
  train:
    cmd: grep -A1 train params.yaml | cat made/rows.txt - > model.txt
    deps: [made]
    params: [train]
    outs: [model.txt]
  score:
    cmd: cat model.txt prompts.txt > scores.txt
    deps: [model.txt, prompts.txt]
    outs: [scores.txt]
  report:
    cmd: mkdir metrics && cat scores.txt made/count.txt > metrics/all.txt && cp metrics/all.txt REPORT.md
    deps: [scores.txt, made/count.txt]
    outs: [{metrics: {cache: false}}, {REPORT.md: {cache: false}}]
"""


def aurora(folder: Path, *words: str, returncode: int = 0) -> str:
    """What `aurora` of this working tree prints in a clone."""
    return run(folder, sys.executable, "-m", "aurora.commands.cli", *words, returncode=returncode, PYTHONPATH=str(ROOT))


def records(folder: Path, side: str = "") -> dict:
    text = run(folder, "git", "show", f"{side}:dvc.lock") if side else (folder / "dvc.lock").read_text()
    return YAML(typ="safe").load(text)["stages"]


def branch(folder: Path, name: str, file: str, before: str, after: str) -> list[str]:
    """A branch off main with one edit and what DVC ran for it, committed."""
    run(folder, "git", "switch", "--quiet", "--create", name, "main")
    dvc(folder, "checkout", "--force")
    edit(folder, file, before, after)
    done = ran(dvc(folder, "repro"))
    commit(folder, name)
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which all has run: `limit` changes a parameter of clean, `row` a row, both with what they ran."""
    folder = tmp_path_factory.mktemp("merging") / "finished"
    folder.mkdir()
    files = {"dvc.yaml": DVC_YAML, "params.yaml": "clean:\n  most: 1\n\n\n\ntrain:\n  rate: 1\n"}
    files |= {"rows.txt": "one\n", "prompts.txt": "why\n", "versions.yaml": "data: {}\n"}
    files |= {".gitignore": "/got\n/made\n/model.txt\n/scores.txt\n/.dvc/cache\n/.dvc/tmp\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    run(folder, "git", "init", "--quiet", "--initial-branch=main")
    dvc(folder, "init", "--quiet")
    assert len(ran(dvc(folder, "repro"))) == 5
    commit(folder, "run")
    assert branch(folder, "limit", "params.yaml", "most: 1", "most: 2") == ["clean"]
    assert branch(folder, "row", "rows.txt", "one", "one\ntwo") == ["clean", "fetch", "report", "score", "train"]
    return folder


@pytest.fixture
def clone(finished: Path, tmp_path: Path) -> Path:
    """A clone on branch `row` that shares the cache of `finished`."""
    folder = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", "--branch", "row", str(finished), str(folder))
    for name in ("main", "limit"):
        run(folder, "git", "branch", "--quiet", name, f"origin/{name}")
    dvc(folder, "cache", "dir", "--local", str(finished / ".dvc/cache"))
    dvc(folder, "checkout", "--quiet")
    return folder


def test_a_merge_stops_is_named_and_ends_in_a_lock_of_what_ran(clone: Path):
    assert "dvc.lock" in run(clone, "git", "merge", "limit", returncode=1)
    for command in ("why", "plan"):
        said = aurora(clone, command, returncode=1)
        assert said.startswith("error: dvc.lock: git's merge is open, since both branches have run stages;")
        assert said.count("\n") == 1
    assert aurora(clone, "merge").endswith("now: dvc repro && git commit --all --no-edit\n")
    sides = [records(clone, side) for side in ("row", "limit")]
    assert all(record in [side.get(name) for side in sides] for name, record in records(clone).items())
    fetched = clone.with_name("fetched.log")
    assert ran(dvc(clone, "repro")) == ["clean"] and not fetched.exists()
    run(clone, "git", "commit", "--all", "--no-edit", "--quiet")
    assert ran(dvc(clone, "repro")) == []
    assert aurora(clone, "why") == "every stage: up to date\n"
    assert run(clone, "git", "status", "--porcelain") == ""
    assert records(clone)["clean"]["params"]["params.yaml"]["clean"] == {"most": 2}
    assert (clone / "made/count.txt").read_text() == "2\n"


def test_the_runs_of_both_branches_are_used(clone: Path):
    """One branch has trained otherwise, the other has other prompts: only what needs both runs."""
    assert branch(clone, "rate", "params.yaml", "rate: 1", "rate: 2") == ["report", "score", "train"]
    assert branch(clone, "prompts", "prompts.txt", "why", "how") == ["report", "score"]
    run(clone, "git", "merge", "rate", returncode=1)
    said = aurora(clone, "merge")
    assert "; of theirs: train\n" in said and "both branches ran score, report; ours stays" in said
    assert ran(dvc(clone, "repro")) == ["report", "score"]
    run(clone, "git", "commit", "--all", "--no-edit", "--quiet")
    assert ran(dvc(clone, "repro")) == []
    assert (clone / "REPORT.md").read_text() == "one\ntrain:\n  rate: 2\nhow\n1\n"


def test_a_merge_by_lines_would_have_said_what_never_ran(clone: Path):
    """What the attributes are for: without them git merges both records of clean into one of no run."""
    (clone / ".git/info/attributes").write_text("dvc.lock merge\n")
    run(clone, "git", "merge", "--quiet", "limit", "--message=by lines")
    assert records(clone)["clean"] not in [records(clone, side)["clean"] for side in ("HEAD^1", "HEAD^2")]


def test_without_an_open_merge_it_says_so(clone: Path):
    said = aurora(clone, "merge", returncode=1)
    assert said == "error: dvc.lock: no merge of git is open here; begin with: git merge BRANCH\n"


def test_a_conflict_in_params_is_named_first(clone: Path):
    edit(clone, "params.yaml", "most: 1", "most: 3")
    commit(clone, "other limit")
    run(clone, "git", "merge", "limit", returncode=1)
    for command in ("why", "plan", "merge"):
        said = aurora(clone, command, returncode=1)
        assert said.startswith("error: params.yaml: ") and "conflict" in said and said.count("\n") == 1


def test_marks_in_a_lock_file_are_named(clone: Path):
    lock = clone / "dvc.lock"
    lock.write_text(f"<<<<<<< HEAD\n{lock.read_text()}=======\n>>>>>>> other\n")
    said = aurora(clone, "why", returncode=1)
    assert said.startswith("error: dvc.lock: holds git's conflict marks; restore one side by: git checkout HEAD")


def test_a_record_is_taken_whole():
    base = {"a": 1, "b": 1, "c": 1, "d": 1, "gone": 1}
    ours = {"a": 1, "b": 2, "c": 2, "d": 1, "gone": 1, "mine": 1}
    theirs = {"a": 3, "b": 1, "c": 3, "d": 1, "new": 1}
    assert merged_records(base, ours, theirs) == (
        {"a": 3, "b": 2, "c": 2, "d": 1, "mine": 1, "new": 1},
        ["a", "gone", "new"],
        ["c"],
    )
