"""Cards as the hub's own library reads them, and provenance as DVC computes it."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from aurora.adapter.record import check_base, weights_hash
from aurora.core.errors import DataError
from aurora.core.files import dvc_hash
from aurora.core.manifests import origin_of
from aurora.pipeline.params import load_params
from aurora.report.adapter_card import adapter_card, hub_id, licence_fields
from aurora.report.model_card import merged_card
from aurora.sft.record import training_record

ROOT = Path(__file__).parent.parent.parent
NO_LICENCE = {"source": "chats", "kind": "instructions", "uri": "x", "files": []}
SCORES = {
    model: {name: {"acc": acc, "stderr": 0.06, "n": 48} for name in ("ceval", "mmlu", "cmmlu")}
    | {"loss": 3 - acc, "zh_reply_rate": acc}
    for model, acc in (("base", 0.25), ("tuned", 0.5))
}


def write_manifest(folder: Path, **fields: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        {"path": name, "sha256": letter * 64, "bytes": 1}
        for name, letter in (("b.safetensors", "b"), ("a.safetensors", "a"), ("config.json", "c"))
    ]
    content = {
        "source": folder.name,
        "kind": "instructions",
        "uri": "samples/x",
        "revision": None,
        "licence": "Apache-2.0",
        "files": files,
    } | fields
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A base of the hub, an adapter with its record, and two sources."""
    import pyarrow
    import pyarrow.parquet

    places = {name: tmp_path / name for name in ("base", "adapter", "instructions", "rows", "sources")}
    uri = "hf://mistralai/Mixtral-8x7B-Instruct-v0.1@" + "1" * 40
    write_manifest(places["base"], uri=uri, revision="1" * 40)
    write_manifest(
        places["instructions"] / "alpaca", licence="CC-BY-NC-4.0", non_commercial=True, uri="https://x.org/a|b.json"
    )
    write_manifest(places["instructions"] / "chats", uri="hf://datasets/owner/chats@" + "2" * 40 + "/c.jsonl")
    places["rows"].mkdir()
    table = pyarrow.table({"source": ["alpaca", "chats", "alpaca"]})
    for name in ("train", "held_out"):
        pyarrow.parquet.write_table(table, places["rows"] / f"{name}.parquet")
    params = load_params(ROOT / "params.yaml")
    record = training_record(places["base"], places["rows"], params.sft, params.quantization)
    places["adapter"].mkdir()
    (places["adapter"] / "training.json").write_text(json.dumps(record))
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"]}
    (places["adapter"] / "adapter_config.json").write_text(json.dumps(config))
    return places


def merged(folders: dict[str, Path], scores: dict = SCORES) -> str:
    write_sources(folders)
    return merged_card(folders["base"], folders["adapter"], folders["sources"], scores)


def of_adapter(folders: dict[str, Path]) -> str:
    write_sources(folders)
    return adapter_card(folders["base"], folders["adapter"], folders["sources"], SCORES)


def write_sources(folders: dict[str, Path]) -> None:
    origins = [origin_of(folders["instructions"] / name) for name in ("alpaca", "chats")]
    origins.append(origins[0] | {"source": "mmlu", "kind": "benchmark", "licence": "none of this model's"})
    folders["sources"].write_text(json.dumps({"sources": origins}))


def test_the_hub_reads_base_data_and_licences(folders):
    data = ModelCard(merged(folders)).data
    assert data.base_model == "mistralai/Mixtral-8x7B-Instruct-v0.1"
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["owner/chats"]
    assert (data.license, data.license_name) == ("other", "Apache-2.0 and CC-BY-NC-4.0")
    assert data.language == ["zh", "en"]
    data = ModelCard(of_adapter(folders)).data
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert (data.license, data.license_name) == ("other", "Apache-2.0 and CC-BY-NC-4.0")


def test_the_card_names_data_recipe_and_hashes(folders, tmp_path: Path):
    card = merged(folders)
    source = dvc_hash(folders["instructions"] / "alpaca")
    assert f"| alpaca | CC-BY-NC-4.0 | https://x.org/a\\|b.json |  | 2 | {source} |" in card
    assert "\n- Not for commercial use, by the licence of: alpaca.\n" in card
    assert f"| adapter | {dvc_hash(folders['adapter'])} |" in card
    assert f"| rows, train | {dvc_hash(folders['rows'] / 'train.parquet')} |" in card
    assert f"| SHA-256 of the weights | {weights_hash(folders['base'])} |" in card
    assert f"| sft.learning\\_rate | {load_params(ROOT / 'params.yaml').sft.learning_rate} |" in card
    assert "| target\\_modules | q\\_proj, v\\_proj |" in card
    assert str(tmp_path) not in card
    assert card == merged(folders)
    assert card.index("## Use") < card.index("## Scores") < card.index("## Limits") < card.index("<details>")
    # Both cards say the same of data and recipe, and differ in how the model is used.
    assert of_adapter(folders).partition("## Scores")[2] == card.partition("## Scores")[2]


def test_a_base_that_forbids_commercial_use_is_named(folders):
    note = "- Not for commercial use, by the licence of: "
    write_manifest(folders["base"], licence="CC-BY-NC-4.0", non_commercial=True)
    assert f"\n{note}the base, alpaca.\n" in merged(folders)
    write_manifest(folders["instructions"] / "alpaca")
    assert f"\n{note}the base.\n" in merged(folders) and f"\n{note}the base.\n" in of_adapter(folders)
    write_manifest(folders["base"])
    assert note not in of_adapter(folders)


def test_text_of_a_licence_opens_no_markup(folders):
    write_manifest(folders["base"], licence="<img src=x> [a](b) | **c**")
    assert r"| licence | \<img src=x\> \[a\](b) \| \*\*c\*\* |" in merged(folders)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("all-linear", "all-linear"), (r".*\.(q|v)_proj", r"\*\\.(q\|v)\_proj"), (None, ""), (["v", "q"], "q, v")],
)
def test_target_modules_are_shown_as_peft_has_them(folders, value, shown: str):
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": value}
    (folders["adapter"] / "adapter_config.json").write_text(json.dumps(config))
    assert re.search(rf"\n\| target\\_modules \| .?{re.escape(shown)} \|\n", merged(folders))


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("adapter/training.json", [], r"training\.json: whole file: .*; write it again by: dvc repro -f sft"),
        ("adapter/training.json", {"base": None}, r"training\.json: base: .*found None"),
        ("adapter/adapter_config.json", {"r": 8}, r"adapter_config\.json: peft_type: Field required"),
        ("base/manifest.json", [], r"base/manifest\.json: whole file: "),
        ("base/manifest.json", {"uri": 5}, r"base/manifest\.json: uri: .*found 5"),
        ("base/manifest.json", {"files": [{"path": "a"}]}, r"files\.0\.sha256: Field required"),
        ("instructions/chats/manifest.json", NO_LICENCE, "licence: Field required; .* -f fetch@chats"),
        ("instructions/chats/manifest.json", None, r"chats/manifest\.json: whole file: .*found None"),
    ],
)
def test_a_damaged_input_of_a_card_is_named(folders, tmp_path: Path, place: str, content, message: str):
    (tmp_path / place).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        merged(folders)
    assert "\n" not in str(caught.value)


def test_scores_are_a_table_and_results_that_the_hub_reads(folders):
    card = merged(folders)
    results = ModelCard(card).data.eval_results
    assert [(result.dataset_type, result.metric_type, result.metric_value) for result in results] == [
        (name, "acc", 0.5) for name in ("ceval", "mmlu", "cmmlu")
    ]
    assert "| MMLU (test) | 0.2500 ± 0.0600 | 0.5000 ± 0.0600 | 48 |" in card
    assert "| share of replies in Chinese | 0.2500 | 0.5000 |  |" in card


def test_scores_that_were_not_measured_are_not_there(folders):
    few = {model: {"mmlu": scores["mmlu"]} for model, scores in SCORES.items()}
    assert len(ModelCard(merged(folders, few)).data.eval_results) == 1
    unjudged = {model: scores | {"zh_reply_rate": None} for model, scores in SCORES.items()}
    assert "| share of replies in Chinese | - | - |  |" in merged(folders, unjudged)
    assert ModelCard(merged(folders, {"base": {}, "tuned": {}})).data.eval_results is None


def test_an_adapter_from_elsewhere_gets_a_card_that_says_what_is_unknown(folders):
    (folders["adapter"] / "training.json").unlink()
    (folders["base"] / "manifest.json").unlink()
    card = merged(folders)
    assert "| SHA-256 of the weights | not recorded |" in card
    assert ModelCard(card).data.license_name == "Apache-2.0 and CC-BY-NC-4.0 and unknown"
    assert not check_base(folders["adapter"], folders["base"])


def test_sources_that_are_not_there_or_lack_a_licence_are_named(folders):
    with pytest.raises(DataError, match="sources: not found; it is written by: dvc repro clean"):
        merged_card(folders["base"], folders["adapter"], folders["sources"], SCORES)
    merged(folders)
    content = json.loads(folders["sources"].read_text())
    del content["sources"][1]["licence"]
    folders["sources"].write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"sources\.1\.licence: .*write it again by: dvc repro -f clean"):
        merged_card(folders["base"], folders["adapter"], folders["sources"], SCORES)
    (folders["instructions"] / "chats/manifest.json").unlink()
    with pytest.raises(DataError, match=r"chats/manifest\.json: not found; it is written by: dvc repro fetch@chats"):
        origin_of(folders["instructions"] / "chats")


def test_hub_names_and_licences():
    assert hub_id("hf://datasets/a/b@123/c/d.json") == "a/b"
    assert hub_id("https://a/b") is hub_id(None) is None
    assert licence_fields(["MIT", "MIT"]) == {"license": "mit"}
    assert licence_fields([None])["license"] == "other"


def test_the_weights_hash_depends_on_weights_alone(folders, tmp_path: Path):
    found = weights_hash(folders["base"])
    write_manifest(tmp_path / "other", licence="MIT", uri="elsewhere")
    assert weights_hash(tmp_path / "other") == found
    content = json.loads((tmp_path / "other/manifest.json").read_text())
    content["files"].reverse()
    content["files"][0]["sha256"] = "d" * 64  # config.json
    (tmp_path / "other/manifest.json").write_text(json.dumps(content))
    assert weights_hash(tmp_path / "other") == found
    content["files"][1]["sha256"] = "d" * 64
    (tmp_path / "other/manifest.json").write_text(json.dumps(content))
    assert weights_hash(tmp_path / "other") != found
    assert weights_hash(tmp_path) is None


def test_hashes_are_dvc_s_own(tmp_path: Path, monkeypatch):
    from dvc.repo import Repo
    from ruamel.yaml import YAML

    folder = tmp_path / "folder"
    for name in ("b/one.txt", "b.txt", "a/two.bin", "B", "数据.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 9 + b"\r\n")
    (tmp_path / "folder.json").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    with Repo.init(no_scm=True) as repo:
        repo.add(["folder", "folder.json"])
    for name in ("folder", "folder.json"):
        out = YAML(typ="safe").load((tmp_path / f"{name}.dvc").read_text())["outs"][0]
        assert dvc_hash(tmp_path / name) == out["md5"]
