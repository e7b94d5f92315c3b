"""Every mistake in params.yaml is one line that names the key, the rule and the value."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from aurora.commands.cli import main
from aurora.core.errors import ParamsError
from aurora.core.messages import PromptName
from aurora.core.params import read_section
from aurora.format.params import Format
from aurora.model.quantization import Quantization
from aurora.pipeline.params import load_params
from aurora.sft.params import Lora, Sft
from aurora.sources.source import Source

ROOT = Path(__file__).parent.parent.parent
HUB_BASE = {"kind": "model", "uri": f"hf://o/n@{'1' * 40}", "format": "transformers", "licence": "MIT"}
CHATS = {"kind": "instructions", "uri": f"hf://datasets/o/n@{'1' * 40}/a.json", "format": "alpaca", "licence": "MIT"}


def changed(tmp_path: Path, key: str, value: object) -> Path:
    """params.yaml with the dotted `key` set to `value`; None removes it."""
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    *parents, last = key.split(".")
    place = content
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(content, file)
    return path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sft.learning_rat", 1e-4, r"sft\.learning_rat: unknown key"),
        ("sft.learning_rate", None, r"sft\.learning_rate: missing"),
        ("sft.learning_rate", "fast", r"sft\.learning_rate: .*'fast'"),
        ("sft.learning_rate", -1.0, r"sft\.learning_rate: .*greater than 0.*-1\.0"),
        ("sft.lora.target_modules", ["embed_tokens"], r"target_modules: embed_tokens gets no adapter; list it under"),
        ("quantization.bits", 8, r"quantization\.bits: .*4, 16 or 32.*8"),
        ("sources.base", None, r"exactly one of kind model together, named base"),
        ("hub_models", None, r"hub_models: missing"),
        ("hub_models.base", HUB_BASE, r"exactly one of kind model together, named base; found \['base', 'base'\]"),
        ("hub_models.chats", CHATS, r"hub_models\.chats: .* of kind instructions, .* move the entry to downloads"),
        ("downloads.mmlu", CHATS, r"sources and downloads have an entry of the same name; rename"),
        ("sources.chats", CHATS, r"sources\.chats: .* is an address, .* move the entry to downloads"),
        ("sources.mmlu", None, r"sources and downloads have no benchmark mmlu; dvc\.yaml lists it for clean"),
        ("sources.mmlu.format", "cmmlu", r"mmlu is of format cmmlu; .*: rename it to cmmlu"),
        ("sources.mmlu.format", "alpaca", r"sources\.mmlu: format 'alpaca' is not one of kind benchmark"),
        ("sources.base.uri", "ftp://x/y", r"sources\.base: uri 'ftp://x/y' has the unknown scheme"),
        ("sources.base.uri", "hf://o/n@main", r"sources\.base: uri 'hf://o/n@main' names no full commit"),
        ("sources.mmlu.format", "csv", r"sources\.mmlu\.format: Input should be 'auto'.*found 'csv'"),
        ("sources.mmlu.uri", "file:a.zip!/b!/c", r"sources\.mmlu: uri 'file:a\.zip!/b!/c' is malformed"),
        ("sources.mmlu.uri", "https://x/y.zip", r"sources\.mmlu: uri 'https://x/y\.zip' is not pinned"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, key: str, value: object, message: str):
    with pytest.raises(ParamsError, match=message) as caught:
        load_params(changed(tmp_path, key, value))
    assert "\n" not in str(caught.value)
    assert "params.yaml: " in str(caught.value)


@pytest.mark.parametrize("name", ["a.b", "../b", "A", "a b", "", "-a", "a" * 65, "数据"])
def test_a_source_s_name_is_a_folder_s_and_a_key_of_params(tmp_path: Path, name: str):
    with pytest.raises(ParamsError, match=r"sources\..*String should match pattern") as caught:
        content = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        content["sources"][name] = content["sources"]["mmlu"]
        with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
            YAML().dump(content, file)
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["https://user:s3cret@h.org/x", "https://h.org/x?key=s3cret", "http://u:s3cret@h.org/x", "hf://u:s3cret@o/n@main"],
)
def test_no_secret_of_an_address_is_repeated(tmp_path: Path, uri: str):
    path = changed(tmp_path, "sources.mmlu.uri", uri)
    for read in (load_params, lambda path: read_section("sources.mmlu", Source, path)):
        with pytest.raises(ParamsError, match=r"sources\.mmlu: ") as caught:
            read(path)
        assert "s3cret" not in str(caught.value)


def test_a_misspelt_key_is_named_with_its_right_spelling(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("learning_rate:", "lerning_rate:"))
    with pytest.raises(ParamsError, match=r"sft\.lerning_rate: unknown key; did you mean learning_rate\? \(and 1"):
        load_params(path)


def test_check_says_what_no_stage_would_notice(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("notes: 1\n" + (ROOT / "params.yaml").read_text())
    done = CliRunner().invoke(main, ["check", str(path)])
    assert done.exit_code == 1
    assert done.stderr == f"error: {path}: notes: unknown key; remove it or correct its spelling\n"
    assert CliRunner().invoke(main, ["check", str(ROOT / "params.yaml")]).exit_code == 0


def test_a_source_that_stands_twice_is_one_line(tmp_path: Path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("\n  ceval:\n", "\n  mmlu:\n", 1))
    line = text[: text.index("\n  ceval:\n")].count("\n") + 2
    with pytest.raises(ParamsError, match=rf"params\.yaml line {line}: mmlu: the name stands twice; rename") as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_one_e_minus_four_is_a_number(tmp_path: Path):
    path = changed(tmp_path, "sft.learning_rate", 0.5)
    path.write_text(path.read_text().replace("learning_rate: 0.5", "learning_rate: 1e-4"))
    assert load_params(path).sft.learning_rate == 1e-4


def test_a_file_that_is_missing_or_no_yaml_is_one_line(tmp_path: Path):
    with pytest.raises(ParamsError, match="not found; run this in the root of the repository, or restore it by"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="not YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("text")
    with pytest.raises(ParamsError, match="expected sections"):
        load_params(tmp_path / "params.yaml")


def test_the_paper_profile_holds_the_paper_s_recipe():
    params = load_params(ROOT / "profiles/paper.yaml")
    sft = params.sft
    assert (sft.lora.r, sft.lora.lora_alpha, sft.lora.lora_dropout) == (8, 16, 0.1)
    assert sft.lora.target_modules == ("q_proj", "v_proj")
    assert (sft.learning_rate, sft.num_train_epochs, sft.lr_scheduler_type) == (5e-5, 3, "cosine")
    assert (sft.per_device_train_batch_size, sft.gradient_accumulation_steps) == (2, 4)
    assert (sft.precision, sft.router_aux_loss_coef, sft.save_steps) == ("fp16", 0.0, 1000)
    assert (params.quantization.bits, params.quantization.double_quant) == (4, True)
    assert params.hub_models["base"].address.revision == "125c431e2ff41a156b9f9076f744d2f35dd6e67a"


def test_a_stage_reads_what_it_declares_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    changed(tmp_path, "sft.learning_rate", 1.5e-4)
    Path("dvc.yaml").write_text(
        "stages:\n"
        "  sft: {cmd: x, params: [sft, format.prompt]}\n"
        "  fetch: {foreach: '${sources}', do: {cmd: x, params: ['sources.${key}']}}\n"
    )
    monkeypatch.setenv("DVC_STAGE", "sft")
    assert read_section("sft", Sft).learning_rate == 1.5e-4
    assert read_section("sft.lora", Lora).target_modules
    assert read_section("format.prompt", PromptName) == "mistral"
    for key, kind in (("quantization", Quantization), ("format", Format), ("sources.mmlu", Source)):
        undeclared = rf"dvc\.yaml: stage sft reads {key}, which it does not declare; add - {key} to its params"
        with pytest.raises(ParamsError, match=undeclared):
            read_section(key, kind)
    monkeypatch.setenv("DVC_STAGE", "fetch@mmlu")
    assert read_section("sources.mmlu", Source).format == "mmlu"
    with pytest.raises(ParamsError, match=r"stage fetch reads sources\.ceval"):
        read_section("sources.ceval", Source)
    monkeypatch.delenv("DVC_STAGE")  # run by hand there is nothing that DVC could miss
    assert set(read_section("sources", dict[str, Source])) > {"base", "mmlu"}
    with pytest.raises(ParamsError, match=r"sources\.mmmlu: missing; there are .*mmlu"):
        read_section("sources.mmmlu", Source)
    changed(tmp_path, "sft.lora.r", 0)
    with pytest.raises(ParamsError, match=r"^params\.yaml: sft\.lora\.r: .*greater than or equal to 1, found 0$"):
        read_section("sft", Sft)
    changed(tmp_path, "format.prompt", "chatml")
    with pytest.raises(ParamsError, match=r"^params\.yaml: format\.prompt: .*'mistral'.*found 'chatml'$"):
        read_section("format.prompt", PromptName)


def test_a_folder_in_the_place_of_params_is_one_line(tmp_path: Path):
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(ParamsError, match=r"params\.yaml: cannot be read \(Is a directory\)$"):
        load_params(tmp_path / "params.yaml")
