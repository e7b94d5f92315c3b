"""What a fresh clone can do before it has fetched or pulled a byte, and what DVC would run after an edit."""

import json
import re
import subprocess
from contextlib import chdir
from pathlib import Path

import networkx
import pytest
from dvc.repo import Repo
from stand_ins.clones import DVC, copy_tracked, edit

pytestmark = pytest.mark.minutes


def run(folder: Path, *command: str, returncode: int = 0) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tracked(root, tmp_path_factory.mktemp("fresh") / "clone")


def would_run(folder: Path) -> list[str]:
    """Stages that `dvc repro` would run with the artefacts of dvc.lock at hand, in the order of their names.

    `dvc repro --dry --allow-missing` cannot say it of a stage that changed, since it would hash what is missing.
    """
    with chdir(folder):
        repo = Repo()
        first = {
            stage
            for stage in repo.index.stages
            if any(dep.status() for dep in stage.deps if dep in stage.params or Path(dep.def_path).exists())
        }
        graph = repo.index.graph  # an edge leads from a stage to one that it needs
        found = first.union(*(networkx.ancestors(graph, stage) for stage in first))
        repo.close()
        return sorted(stage.addressing for stage in found)


def changed(folder: Path, file: str, before: str, after: str) -> list[str]:
    """Stages that would run after this edit, which is taken back."""
    path = folder / file
    text = path.read_text(encoding="utf-8")
    edit(folder, file, before, after)
    assert path.read_text(encoding="utf-8") != text
    try:
        return would_run(folder)
    finally:
        path.write_text(text, encoding="utf-8")


def test_the_lock_file_is_that_of_this_code(clone: Path):
    assert would_run(clone) == [], "run dvc repro and commit dvc.lock and metrics/"
    assert "Running stage" not in run(clone, DVC, "repro", "--dry", "--allow-missing")


def test_a_new_learning_rate_runs_training_and_what_follows(clone: Path):
    stages = changed(clone, "params.yaml", r"(?m)^  learning_rate: \S+", "  learning_rate: 1.234e-3")
    assert stages == ["checkpoints", "eval@tuned", "merge", "report", "sft"]


def test_a_new_version_of_a_library_runs_the_stages_that_it_shapes_and_no_other(clone: Path):
    stages = changed(clone, "versions.yaml", r"(?m)^  trl: .*", '  trl: "99"')
    assert stages == ["checkpoints", "eval@tuned", "merge", "report", "sft"]
    stages = changed(clone, "aurora/small_base/versions.yaml", r"(?m)^torch: .*", 'torch: "99"')
    assert [stage for stage in stages if stage.startswith("fetch")] == ["fetch@base"]
    text = (clone / "versions.yaml").read_text(encoding="utf-8")
    (clone / "versions.yaml").write_text(re.sub(r"(?m)^  trl: .*", '  trl: "99"', text), encoding="utf-8")
    shown = json.loads(run(clone, DVC, "params", "diff", "main", "--json"))
    (clone / "versions.yaml").write_text(text, encoding="utf-8")
    assert shown["versions.yaml"]["training.trl"]["new"] == "99"


def test_an_evaluation_setting_leaves_the_models_alone(clone: Path):
    stages = changed(clone, "params.yaml", r"(?m)^    prompts: \d+", "    prompts: 7")
    assert stages == ["checkpoints", "eval@base", "eval@tuned", "report"]


def test_one_changed_source_is_fetched_alone(clone: Path):
    file = "samples/mmlu/data/test/clinical_knowledge_test.csv"
    first = (clone / file).read_text(encoding="utf-8").partition("\n")[0]
    stages = changed(clone, file, re.escape(first), f"{first} ")
    assert [stage for stage in stages if stage.startswith("fetch")] == ["fetch@mmlu"]


def test_the_code_of_upcycling_is_watched_by_its_base_alone(clone: Path):
    params = clone / "params.yaml"
    small = params.read_text(encoding="utf-8")
    params.write_text((clone / "profiles/smol.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    try:
        with chdir(clone):
            repo = Repo()
            watching = [
                stage.addressing
                for stage in repo.index.stages
                if any("upcycled_base" in dep.def_path for dep in stage.deps)
            ]
            repo.close()
    finally:
        params.write_text(small, encoding="utf-8")
    assert watching == ["fetch_download@base"]


def test_metrics_and_plots_need_no_pull(clone: Path):
    shown = json.loads(run(clone, DVC, "metrics", "show", "--json"))
    scores = json.loads((clone / "metrics/eval.json").read_text(encoding="utf-8"))
    assert shown[""]["data"].keys() == {"metrics/base.json", "metrics/tuned.json"}
    for model in ("base", "tuned"):
        found = shown[""]["data"][f"metrics/{model}.json"]["data"]
        assert len(found) <= 8
        assert {name: found[name] for name in ("loss", "zh_reply_rate", "exact_match")}.items() <= scores[model].items()
        assert all(found[name] == scores[model][name]["acc"] for name in ("ceval", "mmlu", "cmmlu"))
    metrics = clone / "metrics/tuned.json"
    text = metrics.read_text(encoding="utf-8")
    tracked = json.loads(text)
    metrics.write_text(json.dumps(tracked | {"zh_reply_rate": tracked["zh_reply_rate"] - 0.5}), encoding="utf-8")
    difference = json.loads(run(clone, DVC, "metrics", "diff", "main", "--json"))
    metrics.write_text(text, encoding="utf-8")
    assert difference["metrics/tuned.json"]["zh_reply_rate"]["diff"] == pytest.approx(-0.5)
    run(clone, DVC, "plots", "show", "--out", "dvc_plots")
    page = (clone / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "held out" in page and "C-Eval" in page


def test_the_story_is_told_by_the_tracked_numbers(root: Path):
    scores = json.loads((root / "metrics/eval.json").read_text(encoding="utf-8"))
    base, tuned = scores["base"], scores["tuned"]
    assert tuned["loss"] <= 0.75 * base["loss"]
    assert base["zh_reply_rate"] < 0.3
    assert tuned["zh_reply_rate"] > 0.8
    for model in (base, tuned):
        for benchmark in ("ceval", "mmlu", "cmmlu"):
            assert {"acc", "stderr", "n"} <= set(model[benchmark])


def test_autocrlf_changes_no_stage(root: Path, clone: Path, tmp_path: Path):
    """A git that writes CRLF by default (Windows's) checks out the bytes that dvc.lock names."""
    folder = tmp_path / "crlf"
    run(tmp_path, "git", "clone", "--quiet", "--config", "core.autocrlf=true", str(clone), str(folder))
    assert run(folder, "git", "status", "--porcelain") == ""
    assert would_run(folder) == would_run(clone)
    names = run(clone, "git", "ls-files", "-z").split("\0")
    assert all((folder / name).read_bytes() == (clone / name).read_bytes() for name in filter(None, names))
