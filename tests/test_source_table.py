"""`aurora sources` shows every source with its pin, licence and size, and whether it is here."""

import csv
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from aurora.cli import main
from aurora.fetch.fetching import fetch
from aurora.params.whole import load_params

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("samples", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["sources", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_the_table_says_what_is_here(checkout: Path):
    sources = load_params().sources
    for name in ("sharegpt_70k", "mmlu"):
        fetch(name, sources[name], Path("data/raw") / sources[name].kind / name)
    lines = shown().splitlines()
    assert lines[0].split() == ["name", "kind", "pin", "licence", "rows", "bytes", "fetched"]
    assert [line.split()[0] for line in lines[1:]] == list(sources)
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    count = len((checkout / "samples/sharegpt_70k.jsonl").read_text().splitlines())
    size = (checkout / "samples/sharegpt_70k.jsonl").stat().st_size
    assert cells["sharegpt_70k"] == [
        "instructions",
        "repository",
        "Apache-2.0",
        f"{count:,}",
        f"{size:,}",
        "yes",
    ]
    questions = sum(
        1 for path in (checkout / "samples/mmlu").rglob("*.csv") for _ in csv.reader(path.open(newline=""))
    )
    assert (cells["mmlu"][3], cells["mmlu"][5]) == (f"{questions:,}", "yes")
    assert cells["ceval"] == ["benchmark", "repository", "Apache-2.0", "-", "-", "no"]
    assert cells["base"] == ["model", "repository", "Apache-2.0", "-", "-", "no"]


def test_a_profile_shows_pins_and_marks_what_is_not_for_commerce(checkout: Path):
    lines = {line.split()[0]: line for line in shown("profiles/paper.yaml").splitlines()}
    assert "CC-BY-NC-4.0 (non-commercial)" in lines["alpaca_gpt4_data_zh"]
    assert "CC-BY-NC-SA-4.0 (non-commercial)" in lines["ceval"]
    assert "non-commercial" not in lines["mmlu"] + lines["base"]
    assert lines["alpaca_data_zh_51k"].split() == [
        "alpaca_data_zh_51k", "instructions", "sha256", "Apache-2.0", "51,461", "18,810,090", "no"
    ]  # fmt: skip
    assert "commit" in lines["base"]


def test_bytes_of_another_source_are_not_taken_for_this_one(checkout: Path):
    source = load_params().sources["mmlu"]
    fetch(
        "mmlu",
        source.model_copy(update={"uri": "samples/ceval", "format": "ceval"}),
        Path("data/raw/benchmark/mmlu"),
    )
    assert next(line for line in shown().splitlines() if line.startswith("mmlu")).endswith("another uri")


def test_a_folder_without_a_pipeline_is_one_line(checkout: Path):
    Path("dvc.yaml").unlink()
    assert shown(status=1).startswith(
        "error: dvc.yaml: no stage fetch with an output in it (FileNotFoundError)"
    )
