"""The whole evaluation of a tiny model on the samples."""

import json
import shutil
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner
from lm_eval import evaluate as lm_evaluate
from lm_eval.models.huggingface import HFLM
from tiny_mixtral import load_tokenizer, tiny_model, write_model

from aurora.benchmarks import read_benchmark
from aurora.errors import DataError
from aurora.evaluation import evaluate, score_benchmarks
from aurora.held_out import held_out_loss
from aurora.memory import Memory, fingerprint, open_memory
from aurora.params import Eval, Quantization
from aurora.prefix import PassRunner, PrefixLM
from aurora.store import write_parquet
from aurora.tasks import load_groups, load_task
from stages.eval import main

NAMES = ("ceval", "mmlu", "cmmlu")
DENSE = Quantization(bits=32, double_quant=False, compute_dtype="float32")
PARAMS = Eval.model_validate_json(
    json.dumps(
        {
            "tasks": {name: {"num_fewshot": 2, "limit": 2} for name in NAMES},
            "batch_tokens": 256,
            "max_length": 4096,
            "chat_template": False,
            "loss_rows": None,
            "threads": 1,
            "replies": {"prompts": 3, "max_new_tokens": 4, "batch_size": 2},
        }
    )
)
FILES = ("results.json", "questions.parquet", "replies.parquet")


@pytest.fixture(scope="module")
def place(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, benchmarks and held_out.parquet."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_model(folder / "model")
    for name in NAMES:
        shutil.copytree(root / "samples" / name, folder / "benchmarks" / name)
        (folder / "benchmarks" / name / "manifest.json").write_text(json.dumps({"format": name}))
    draw = numpy.random.default_rng(0)
    rows = []
    for number, prompt in enumerate(
        ["你是谁？", "请写一首诗", "Who are you?", "今天天气怎么样？", "介绍一下北京"]
    ):
        prompt_length, length = draw.integers(5, 30, 2).tolist()
        ids = [1, *draw.integers(3, 32000, prompt_length + length).tolist(), 2]
        labels = [-100] * (prompt_length + 1) + ids[prompt_length + 1 :]
        rows.append({"id": f"{number}", "prompt": prompt, "input_ids": ids, "labels": labels})
    lists = pyarrow.list_(pyarrow.int32())
    kinds = {"id": pyarrow.string(), "prompt": pyarrow.string(), "input_ids": lists, "labels": lists}
    write_parquet(folder / "held_out.parquet", pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(kinds)))
    return folder


def run(place: Path, out: Path, params: Eval = PARAMS) -> dict:
    out.mkdir(parents=True)
    return evaluate(place / "model", place / "benchmarks", place / "held_out.parquet", out, params, DENSE)


@pytest.fixture(scope="module")
def outcome(place: Path) -> Path:
    """The files of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run(place, place / "out")
    return place / "out"


def test_results_follow_from_the_questions(outcome: Path) -> None:
    results = json.loads((outcome / "results.json").read_text())
    rows = pyarrow.parquet.read_table(outcome / "questions.parquet").to_pylist()
    assert len(rows) == 2 * len(results["subjects"])
    for name in NAMES:
        right = [row["prediction"] == row["target"] for row in rows if row["task"] == name]
        assert results[name]["n"] == len(right)
        assert results[name]["acc"] == pytest.approx(sum(right) / len(right), abs=1e-6)
        assert 0 <= results[name]["stderr"] < 1
    for row in rows:
        values = [row[f"logprob_{letter}"] for letter in "abcd"]
        assert row["prediction"] == "ABCD"[int(numpy.argmax(values))]
        assert row["cut_tokens"] == 0
    assert results["too_long"] == 0
    assert (
        sum(score["n"] for name, score in results["categories"].items() if name.startswith("cmmlu"))
        == results["cmmlu"]["n"]
    )
    replies = pyarrow.parquet.read_table(outcome / "replies.parquet").to_pylist()
    assert [row["id"] for row in replies] == ["0", "1", "3"]
    assert {"zh_reply_rate", "mixed_rate", "repetition", "mean_length"} <= results.keys()
    assert not list(Path(outcome.parent, ".aurora", "eval").iterdir())


def test_group_scores_are_stock(root: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path)
    subjects = {name: read_benchmark(root / "samples" / name, name, 2, 3) for name in NAMES}
    ours, _ = score_benchmarks(
        PrefixLM(tiny_model(), tokenizer=tokenizer, batch_tokens=512), subjects, PARAMS
    )
    stock = HFLM(tiny_model(), tokenizer=tokenizer, batch_size=4)
    for name, group in (("ceval", "ceval-valid"), ("mmlu", "mmlu"), ("cmmlu", "cmmlu")):
        tasks = {(task := load_task(name, subject, 2)).task_name: task for subject in subjects[name]}
        found = lm_evaluate(stock, {"tasks": tasks, "groups": load_groups(name, tasks)})["results"]
        assert ours[name]["acc"] == found[group]["acc,none"]
        assert ours[name]["stderr"] == found[group]["acc_stderr,none"]
        for task, subject in zip(tasks, subjects[name], strict=True):
            assert ours["subjects"][f"{name}_{subject.name}"]["acc"] == found[task]["acc,none"]


def test_chat_template_reaches_the_prompts(root: Path, tmp_path: Path) -> None:
    lm = PrefixLM(tiny_model(), tokenizer=load_tokenizer(tmp_path), batch_tokens=512)
    asked = []
    original = lm.loglikelihood
    lm.loglikelihood = lambda requests: asked.extend(requests) or original(requests, disable_tqdm=True)
    subjects = {"ceval": read_benchmark(root / "samples" / "ceval", "ceval", 2, 1)[:2]}
    score_benchmarks(lm, subjects, PARAMS.model_copy(update={"chat_template": True}))
    for request in asked:
        assert request.args[0].startswith("<s>[INST] ") and request.args[0].endswith("答案： [/INST]")
        assert request.args[1] in "ABCD"
        assert lm.encode_pairs([request.args]) == [lm._encode_pair(*request.args)]


def test_loss_is_that_of_transformers(place: Path) -> None:
    total, count = 0.0, 0
    for row in pyarrow.parquet.read_table(place / "held_out.parquet").to_pylist():
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = tiny_model()(torch.tensor([row["input_ids"]]), labels=labels).loss.item()
        trained = int((labels[:, 1:] != -100).sum())
        total, count = total + loss * trained, count + trained
    for batch_tokens in (1, 64, 4096):
        found = held_out_loss(tiny_model(), place / "held_out.parquet", None, batch_tokens)
        assert found == pytest.approx(total / count, rel=1e-6)
    with pytest.raises(DataError, match="no row has a trained token"):
        held_out_loss(tiny_model(), place / "held_out.parquet", 0, 64)


@pytest.mark.parametrize("stop", [2, 20])
def test_a_killed_run_ends_in_the_same_bytes(
    place: Path, outcome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.chdir(tmp_path)
    original, done = PassRunner.run, [0]

    def counted(*arguments: object) -> torch.Tensor:
        if done[0] == stop:
            raise KeyboardInterrupt
        done[0] += 1
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PassRunner, "run", counted)
        with pytest.raises(KeyboardInterrupt):
            run(place, tmp_path / "killed")
    (path,) = (tmp_path / ".aurora" / "eval").glob("*.sqlite")
    memory = Memory(path)
    assert len(memory) == stop
    memory.close()
    run(place, tmp_path / "out")
    assert [(tmp_path / "out" / name).read_bytes() for name in FILES] == [
        (outcome / name).read_bytes() for name in FILES
    ]


def test_another_model_has_another_memory(place: Path, tmp_path: Path) -> None:
    settings = DENSE.model_dump()
    one = fingerprint(place / "model", settings)
    assert one == fingerprint(shutil.copytree(place / "model", tmp_path / "copy"), settings)
    weights = tmp_path / "copy" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert one != fingerprint(tmp_path / "copy", settings)
    assert one != fingerprint(place / "model", settings | {"bits": 4})
    memory = open_memory(place / "model", settings, tmp_path / "scratch")
    memory.put(b"key", b"value")
    assert open_memory(place / "model", settings, tmp_path / "scratch").get(b"key") == b"value"
    assert open_memory(tmp_path / "copy", settings, tmp_path / "scratch").get(b"key") is None


def stage(place: Path, **paths: Path) -> tuple[int, str, list[str]]:
    given = {
        "model": place / "model",
        "benchmarks": place / "benchmarks",
        "rows": place / "held_out.parquet",
        "out": place / "staged",
    } | paths
    arguments = [part for name, path in given.items() for part in (f"--{name}", str(path))]
    found = CliRunner().invoke(main, arguments)
    return (
        found.exit_code,
        found.stdout,
        [line for line in found.stderr.splitlines() if line.startswith("error")],
    )


def test_a_faulty_benchmark_ends_in_one_line(
    place: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / "params.yaml", tmp_path)
    shutil.copytree(place / "benchmarks", tmp_path / "benchmarks")
    path = next((tmp_path / "benchmarks" / "ceval" / "val").glob("*.csv"))
    path.write_text("id,question,A,B,C,D\n0,q,1,2,3,4\n", encoding="utf-8")
    code, text, errors = stage(place, benchmarks=tmp_path / "benchmarks", out=tmp_path / "out")
    assert (code, text) == (1, "")
    assert len(errors) == 1 and str(path) in errors[0] and "no column 'answer'" in errors[0]
    assert {entry.name for entry in tmp_path.iterdir()} == {"params.yaml", "benchmarks"}


def test_a_model_of_another_family_ends_in_one_line(
    place: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / "params.yaml", tmp_path)
    folder = shutil.copytree(place / "model", tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    code, text, errors = stage(place, model=folder, out=tmp_path / "out")
    assert (code, text) == (1, "") and len(errors) == 1 and str(folder) in errors[0]
    assert not (tmp_path / "out").exists()
