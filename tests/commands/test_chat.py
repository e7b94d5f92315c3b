"""`aurora chat`: several rounds in the prompt of the training, each answer the greedy one."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML
from stand_ins.tiny_mixtral import write_model

from aurora.commands.cli import main
from aurora.eval.prompt_set import question_encoder
from aurora.eval.replies import generate
from aurora.model.loading import load_model, load_tokenizer
from aurora.model.quantization import Quantization
from aurora.small_base.tokenizer_folder import write_tokenizer

ROOT = Path(__file__).parent.parent.parent
BITS = {"bits": 32, "double_quant": False, "compute_dtype": "float32"}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import mistral_common

    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_tokenizer(Path(mistral_common.__file__).parent / "data/tokenizer.model.v1", tmp_path / "model")
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["quantization"] = BITS
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    return tmp_path / "model"


def talk(*lines: str, tokens: int = 6):
    return CliRunner().invoke(
        main, ["chat", "model", "--max-new-tokens", str(tokens)], input="\n".join(lines) + "\n"
    )


def test_each_round_is_answered_greedily_in_the_form_of_the_training(model: Path):
    tokenizer, loaded = load_tokenizer(model), load_model(model, Quantization(**BITS)).eval()
    encode = question_encoder(tokenizer, "mistral")
    history: list[int] = []
    expected = []
    for question in ("你好", "你是谁？"):
        history += encode(question, not history)
        (reply,) = generate(loaded, [history], 6, frozenset([tokenizer.eos_token_id]))
        history += [*reply, tokenizer.eos_token_id]
        expected.append(tokenizer.decode(reply, skip_special_tokens=True).strip())
    done = talk("你好", "", "你是谁？", "/new", "你好")
    assert done.exit_code == 0, done.output
    assert "".join(done.stdout.split()) == "".join("".join([*expected, expected[0]]).split())


def test_a_question_beyond_the_context_is_one_line(model: Path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    done = talk("好" * 40)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "exceed the context of 32; begin again by /new, or lower --max-new-tokens" in done.stderr


def test_a_folder_without_a_model_is_one_line(model: Path):
    done = CliRunner().invoke(main, ["chat", "nowhere"], input="你好\n")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: nowhere") and done.stderr.count("\n") == 1
