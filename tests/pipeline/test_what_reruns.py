"""docs/what-reruns.md says what DVC does, and no edit of another stage's code trains, merges or evaluates again."""

from pathlib import Path

import pytest
from stand_ins.what_reruns import PAGE, Edits, page

pytestmark = pytest.mark.minutes
OF_ONE_STAGE = [
    "a command",
    "the checker",
    "a model card",
    "the report's page",
    "the schema of clean",
    "a page of docs",
]


def test_the_table_of_edits_is_what_dvc_says(root: Path, tmp_path: Path):
    written = (root / PAGE).read_text(encoding="utf-8")
    assert page(Edits(root, tmp_path)) == written, f"{PAGE} is of another dvc.yaml or other rooms: run make docs"
    rows = [line.strip("| ").split(" | ") for line in written.splitlines() if line.startswith("| ")]
    again = {edit.partition(", `")[0].strip("`"): set(stages.split(", ")) for edit, stages, _ in rows}
    costly = {"sft", "merge", "eval", "eval@base"}
    assert {edit: again[edit] & costly for edit in OF_ONE_STAGE} == {edit: set() for edit in OF_ONE_STAGE}
    for stage in ("sft", "merge", "eval"):
        others = {name for name in again if name.startswith(("aurora/", "stages/")) and name.endswith(f"/{stage}")}
        assert all(again[name] & costly <= {stage} for name in others) and others
    assert again["the schema of sft"] == {"sft"} and again["the schema of eval"] & costly == {"eval"}
