"""What `aurora export` writes, as stock transformers, PEFT, the hub's library and sha256sum read it."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from aurora.commands.cli import main
from aurora.core.files import dvc_hash
from aurora.export.contents import end_tokens, portable_config, training_template
from aurora.serving.encoding import message_encoder

pytestmark = pytest.mark.minutes

ROOT = Path(__file__).parent.parent.parent
CHAT = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "您好！"},
    {"role": "user", "content": "你是谁？"},
]


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def export(*arguments: object):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def exported(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both folders, written by a process that may not write into read-only files, as root may."""
    out = tmp_path_factory.mktemp("published")
    ordinary = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    for name in ("merged", "adapter"):
        command = [sys.executable, "-m", "aurora.commands.cli", "export", f"--{name}", str(out / name)]
        if os.geteuid() == 0 and shutil.which("setpriv"):
            command = [*ordinary, *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, umask=0o022)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("export: ") and done.stdout.count("\n") == 1
    return {name: out / name for name in ("merged", "adapter")}


@pytest.mark.parametrize("name", ["merged", "adapter"])
def test_permissions_are_ordinary_and_sums_hold(exported, name: str):
    folder = exported[name]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    assert not [path for path in folder.iterdir() if path.is_symlink()]
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    (folder / "README.md").open("a").close()  # the card can be edited


def test_stock_transformers_reads_the_merged_model(exported, project: Path):
    ids = torch.tensor([[1, 733, 16289, 28793, 28705, 29383]])
    with torch.inference_mode():
        found, wanted = (
            AutoModelForCausalLM.from_pretrained(folder)(ids).logits
            for folder in (exported["merged"], project / "models/merged")
        )
    assert torch.equal(found, wanted)


READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, chat = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="float32"), AutoTokenizer.from_pretrained(folder)
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
with torch.inference_mode():
    logits = model(ids).logits[0, -1].tolist()
tokens = model.generate(ids, max_new_tokens=20, do_sample=False)[0].tolist()
print(json.dumps({"version": transformers.__version__, "logits": logits, "tokens": tokens}))
"""


@pytest.mark.slow
def test_transformers_4_gives_the_logits_and_tokens_of_transformers_5(exported, tmp_path: Path):
    old = ["transformers==4.57.3", "huggingface-hub==0.36.2", "tokenizers==0.22.1"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "old")]
    if subprocess.run([*install, *old], capture_output=True).returncode:
        pytest.skip("transformers 4.57 cannot be installed here")
    folder = Path(shutil.copytree(exported["merged"], tmp_path / "merged"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5000.0  # unlike the default of both
    (folder / "config.json").write_text(json.dumps(portable_config(config, [2])))
    found = []
    for path in ("", str(tmp_path / "old")):
        command = [sys.executable, "-c", READ, str(folder), json.dumps(CHAT)]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    new, old = found
    assert new["version"].startswith("5.") and old["version"] == "4.57.3"
    assert old["tokens"] == new["tokens"]
    torch.testing.assert_close(torch.tensor(old["logits"]), torch.tensor(new["logits"]))


def test_peft_reads_the_adapter_on_its_base(exported, project: Path):
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(exported["adapter"])
    assert (config.base_model_name_or_path, config.revision) == ("owner/tiny-mixtral", "1" * 40)
    base = AutoModelForCausalLM.from_pretrained(project / "data/raw/model/base")
    model = PeftModel.from_pretrained(base, exported["adapter"])
    merged = AutoModelForCausalLM.from_pretrained(exported["merged"])
    ids = torch.tensor([[1, 733, 16289, 28793, 28705, 29383]])
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, merged(ids).logits, atol=1e-4)


@pytest.mark.parametrize("name", ["merged", "adapter"])
def test_the_tokeniser_beside_the_model_gives_the_training_s_tokens(exported, name: str):
    tokenizer = AutoTokenizer.from_pretrained(exported[name])
    found = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert found == message_encoder(tokenizer, "mistral")(CHAT)


def test_older_readers_find_the_rope_theta_and_all_the_same_end(exported):
    folder = exported["merged"]
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1_000_000.0
    ends = [
        json.loads((folder / name).read_text())["eos_token_id"] for name in ("config.json", "generation_config.json")
    ]
    assert ends == [2, 2] and AutoTokenizer.from_pretrained(folder).eos_token_id == 2


def test_provenance_names_the_hub_s_ids_and_dvc_s_hashes(exported, project: Path):
    told = json.loads((exported["merged"] / "provenance.json").read_text())
    assert told["dvc_hash"] == dvc_hash(project / "models/merged")
    assert told["adapter"] == dvc_hash(project / "models/adapter")
    assert told["base"] == {"uri": "hf://owner/tiny-mixtral@" + "1" * 40, "revision": "1" * 40, "licence": "Apache-2.0"}
    assert told["data"][0]["revision"] == "2" * 40
    card = ModelCard.load(exported["merged"] / "README.md").data
    assert (card.base_model, card.datasets, card.license) == ("owner/tiny-mixtral", ["owner/chats"], "apache-2.0")
    for folder in exported.values():
        texts = [path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".json")]
        assert not [text for text in texts if str(project) in text or "data/raw" in text]


def test_the_same_project_gives_the_same_bytes(exported, tmp_path: Path):
    assert export(tmp_path / "again").exit_code == 0
    assert (tmp_path / "again/SHA256SUMS").read_text() == (exported["merged"] / "SHA256SUMS").read_text()


@pytest.mark.parametrize("name", ["merged", "adapter"])
def test_a_dry_run_says_the_sizes_and_writes_nothing(exported, tmp_path: Path, name: str):
    done = export(f"--{name}", "--dry-run", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.iterdir())
    found = {line.split("  ")[-1]: int(line.split()[0].replace(",", "")) for line in done.stdout.splitlines()[:-1]}
    written = {path.name: path.stat().st_size for path in exported[name].iterdir() if path.name != "SHA256SUMS"}
    assert found == written
    assert f"{sum(written.values()):,}  bytes of disk are needed" in done.stdout


def one_line(done) -> str:
    assert done.exit_code == 1, done.output
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("export:", "sha256:"))]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def copy(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project to break."""
    shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("lost", "what", "said"),
    [
        ("models/merged", "--merged", "models/merged/config.json: not found; it is written by: dvc repro merge"),
        ("models/adapter", "--adapter", "adapter_config.json: not found; it is written by: dvc repro sft"),
        ("data/raw/model/base", "--adapter", "data/raw/model/base/config.json: not found"),
        ("metrics/model_card.md", "--merged", "metrics/model_card.md: not found; it is written by: dvc repro report"),
        ("data/clean/sources.json", "--merged", "sources.json: not found; it is written by: dvc repro clean"),
        ("dvc.yaml", "--merged", "no dvc.yaml here"),
    ],
)
def test_what_is_missing_is_named(copy: Path, lost: str, what: str, said: str):
    path = copy / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said in one_line(export(what, copy / "out"))
    assert not (copy / "out").exists()


def test_a_card_without_a_licence_or_of_another_adapter_is_refused(copy: Path):
    card = copy / "metrics/model_card.md"
    text = card.read_text()
    card.write_text(text.replace("license: apache-2.0\n", "license: other\nlicense_name: MIT and unknown\n"))
    assert "the licence of the base or of a source is unknown" in one_line(export(copy / "out"))
    card.write_text(text.replace(dvc_hash(copy / "models/adapter"), "0" * 32))
    assert "describes another adapter" in one_line(export(copy / "out"))
    assert not (copy / "out").exists()


def test_other_bytes_than_dvc_lock_s_are_refused(copy: Path):
    (copy / "dvc.lock").write_text(
        f"schema: '2.0'\nstages: {{merge: {{outs: [{{path: models/merged, md5: {'0' * 32}.dir}}]}}}}\n"
    )
    assert f"are not those of dvc.lock ({'0' * 32}.dir)" in one_line(export(copy / "out"))


def test_a_folder_that_exists_or_a_disk_too_small_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch):
    (copy / "out").mkdir()
    (copy / "out/mine").write_text("x")
    assert "out: exists already" in one_line(export(copy / "out"))
    monkeypatch.setattr("aurora.export.folder.free_bytes", lambda folder: 1000)
    assert "and its disk has 1,000 free" in one_line(export(copy / "other"))
    assert not (copy / "other").exists() and (copy / "out/mine").read_text() == "x"


def test_a_disk_that_fills_up_leaves_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch):
    def full(source: Path, target: Path) -> bool:
        target.write_bytes(b"x")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("aurora.export.folder.reflink", full)
    assert "No space left on device" in one_line(export(copy / "out"))
    assert not list(copy.glob("*out*"))


@pytest.mark.parametrize("form", ["mistral", "bos_every_turn"])
def test_the_template_is_that_of_the_training(project: Path, form: str):
    tokenizer = AutoTokenizer.from_pretrained(project / "models/merged")
    template = training_template(tokenizer, form)
    found = tokenizer.apply_chat_template(CHAT, chat_template=template, add_generation_prompt=True, return_dict=False)
    assert found == message_encoder(tokenizer, form)(CHAT)
    assert found.count(tokenizer.bos_token_id) == (2 if form == "bos_every_turn" else 1)


def test_the_end_of_the_training_comes_first_and_other_ends_stay(tmp_path: Path, project: Path):
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(project / "models/merged")
    for given, wanted in ((2, [2]), (None, [2]), ([7, 2], [2, 7]), (7, [2, 7])):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
        assert end_tokens(tmp_path, tokenizer) == wanted
