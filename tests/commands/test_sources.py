"""`aurora sources` shows every source with its pin, licence and size, and whether it is here."""

import csv
import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from aurora.commands.cli import main
from aurora.core.files import git_blob_id
from aurora.fetch.fetch import fetch
from aurora.pipeline.params import load_params
from aurora.sources.source import Source

ROOT = Path(__file__).parent.parent.parent


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
    assert cells["sharegpt_70k"] == ["instructions", "repository", "Apache-2.0", f"{count:,}", f"{size:,}", "yes"]
    questions = sum(1 for path in (checkout / "samples/mmlu").rglob("*.csv") for _ in csv.reader(path.open(newline="")))
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
    fetch("mmlu", source.model_copy(update={"uri": "samples/ceval", "format": "ceval"}), FOLDERS["mmlu"])
    assert next(line for line in shown().splitlines() if line.startswith("mmlu")).endswith("another uri")


FOLDERS = {"mmlu": Path("data/raw/benchmark/mmlu"), "sharegpt_70k": Path("data/raw/instructions/sharegpt_70k")}


def edited(section: str = "sources", **values: object) -> str:
    """What the table says of sharegpt_70k once params.yaml gives it these values too."""
    yaml = YAML()
    content = yaml.load(Path("params.yaml").read_text(encoding="utf-8"))
    content[section]["sharegpt_70k"] = content["sources"].pop("sharegpt_70k") | values
    with Path("edited.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    return next(line for line in shown("edited.yaml").splitlines() if line.startswith("sharegpt_70k"))


def test_bytes_that_do_not_fit_the_pins_of_today_are_stale(checkout: Path):
    folder, source = FOLDERS["sharegpt_70k"], load_params().sources["sharegpt_70k"]
    manifest = fetch("sharegpt_70k", source, folder)
    path = folder / "sharegpt_70k.jsonl"
    right = {"sha256": manifest["files"][0]["sha256"], "bytes": path.stat().st_size, "git_blob": git_blob_id(path)}
    wrong = {"sha256": "0" * 64, "bytes": 5, "git_blob": "0" * 40}
    assert edited().endswith("yes")
    for pin in right:
        fetch("sharegpt_70k", source.model_copy(update={pin: right[pin]}), folder)
        assert edited(**{pin: right[pin]}).endswith("yes"), pin
        assert edited(**{pin: wrong[pin]}).endswith("stale"), pin
    fetch("sharegpt_70k", source.model_copy(update=right), folder)
    assert edited(**right).endswith("yes")
    for pin in right:
        assert edited(**right | {pin: wrong[pin]}).endswith("stale"), pin
    fetch("sharegpt_70k", source, folder)
    assert edited(licence="MIT").endswith("stale")
    assert edited(rows=7).endswith("stale")
    assert edited(format="messages").endswith("stale")
    row = edited(bytes=5).split()
    assert (row[-2], row[-1]) == ("5", "stale")  # the size that params.yaml expects


def test_pins_of_an_archive_are_compared_with_the_archive(checkout: Path):
    with zipfile.ZipFile("rows.zip", "w") as file:
        file.write("samples/sharegpt_70k.jsonl", "data/rows.jsonl")
    packed, folder = Path("rows.zip").read_bytes(), FOLDERS["sharegpt_70k"]
    blob = git_blob_id(Path("rows.zip"))
    values = {"uri": "file:rows.zip!/data", "sha256": hashlib.sha256(packed).hexdigest(), "git_blob": blob}
    source = Source(kind="instructions", format="sharegpt", licence="Apache-2.0", **values)
    fetch("sharegpt_70k", source, folder)
    assert edited("downloads", **values).endswith("yes")
    assert edited("downloads", **values | {"sha256": "0" * 64}).endswith("stale")
    assert edited("downloads", **values | {"git_blob": "0" * 40}).endswith("stale")


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"{", "damaged"), (b"[]", "damaged"), (b"\xff", "damaged"), (b"{}", "damaged"),
        (b'{"source": "a", "kind": "b", "format": "c", "rows": 1, "files": []}', "stale"),
        (b'{"source": "a", "kind": "b", "format": "c", "rows": 1, "files": [{"path": "x"}]}', "stale"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_no_error(checkout: Path, content: bytes, state: str):
    FOLDERS["mmlu"].mkdir(parents=True)
    (FOLDERS["mmlu"] / "manifest.json").write_bytes(content)
    line = next(line for line in shown().splitlines() if line.startswith("mmlu"))
    assert line.split() == ["mmlu", "benchmark", "repository", "Apache-2.0", "-", "-", state]


def test_files_that_are_gone_or_cut_are_damaged(checkout: Path):
    fetch("mmlu", load_params().sources["mmlu"], FOLDERS["mmlu"])
    file = next(FOLDERS["mmlu"].rglob("*.csv"))
    content = file.read_bytes()
    for damage in (lambda: file.write_bytes(content[:-1]), file.unlink):
        damage()
        assert next(line for line in shown().splitlines() if line.startswith("mmlu")).endswith("damaged")


@pytest.mark.parametrize(
    ("licence", "marked"), [("cc_by_nc_4", True), ("not for commercial use", True), ("Apache-2.0", False)]
)
def test_a_licence_in_words_is_marked_in_table_and_manifest(checkout: Path, licence: str, marked: bool):
    assert ("(non-commercial)" in edited(licence=licence)) is marked
    source = load_params().sources["sharegpt_70k"].model_copy(update={"licence": licence})
    assert fetch("sharegpt_70k", source, FOLDERS["sharegpt_70k"])["non_commercial"] is marked


def test_a_folder_without_a_pipeline_is_one_line(checkout: Path):
    Path("dvc.yaml").unlink()
    assert shown(status=1).startswith("error: dvc.yaml: not found; ")
    Path("dvc.yaml").write_text("stages: {fetch: {cmd: x}}")
    assert shown(status=1).startswith("error: dvc.yaml: no stage fetch with one output (KeyError)")


def test_a_source_that_cannot_be_read_does_not_hide_the_others(checkout: Path):
    source = load_params().sources["sharegpt_70k"]
    Path("samples/sharegpt_70k.jsonl").write_text("no rows\n")
    fetch("sharegpt_70k", source, FOLDERS["sharegpt_70k"])
    fetch("mmlu", load_params().sources["mmlu"], FOLDERS["mmlu"])
    lines = {line.split()[0]: line for line in shown().splitlines()}
    assert " unreadable: data/raw/instructions/sharegpt_70k/sharegpt_70k.jsonl: no JSON" in lines["sharegpt_70k"]
    assert lines["mmlu"].endswith("yes")
