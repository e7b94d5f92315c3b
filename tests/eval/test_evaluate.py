"""The whole evaluation of a tiny model on the samples."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner
from lm_eval import evaluate as lm_evaluate
from lm_eval.models.huggingface import HFLM
from stand_ins.tiny_mixtral import load_tokenizer, tiny_model, write_model

from aurora.core.errors import DataError, SourceError
from aurora.core.files import write_json
from aurora.core.parquet import write_parquet
from aurora.eval.answers import answer_metrics
from aurora.eval.benchmarks import read_benchmark
from aurora.eval.evaluate import evaluate, load_other_tasks, read_subjects, score_benchmarks, score_other_tasks
from aurora.eval.held_out import held_out_loss
from aurora.eval.params import BenchmarkParams, Eval
from aurora.eval.prefix import PassRunner, PrefixLM
from aurora.eval.resume_cache import ResumeCache, digest_of, fingerprint, open_resume_cache
from aurora.eval.tasks import load_groups, load_other_task, load_task
from aurora.model.quantization import Quantization
from stages.eval import main

pytestmark = pytest.mark.minutes

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
            "protocols": ["lm_eval", "paper"],
            "router_tokens": 64,
        }
    )
)
FILES = (
    "results.json",
    "questions.parquet",
    "paper_questions.parquet",
    "replies.parquet",
    "prompts.parquet",
    "router.parquet",
    "language_confusion.parquet",
)


@pytest.fixture(scope="module")
def place(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, benchmarks, prompts and held_out.parquet."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_model(folder / "model")
    (folder / "prompts.yaml").write_text("medical:\n- 我肚子疼\ndialogue:\n- [你好, 再见]\n", encoding="utf-8")
    for name in NAMES:
        shutil.copytree(root / "samples" / name, folder / "benchmarks" / name)
    source = folder / "sources" / "language_confusion"
    shutil.copytree(root / "samples" / "language_confusion", source)
    manifest = {"source": "language_confusion", "kind": "prompts", "format": "language_confusion"}
    write_json(source / "manifest.json", manifest | {"rows": None, "files": []})
    draw = numpy.random.default_rng(0)
    rows = []
    for number, prompt in enumerate(["你是谁？", "请写一首诗", "Who are you?", "今天天气怎么样？", "介绍一下北京"]):
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
    inputs = (place / name for name in ("model", "benchmarks", "held_out.parquet", "prompts.yaml"))
    return evaluate(*inputs, out, params, DENSE, "mistral", prompt_sources=place / "sources")


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
    found, expected = (answer_metrics(*zip(*((row["reply"], row["answer"]) for row in replies), strict=True)), {})
    for name, value in found.items():
        expected[name] = value if value is None else pytest.approx(value, abs=1e-6)
    assert {name: results[name] for name in expected} == expected
    assert results["replies"] == len(replies)
    assert results["no_language"] == sum(row["language"] == "none" for row in replies)
    judged = [row["language"] == "Chinese" for row in replies if row["language"] != "none"]
    expected = pytest.approx(sum(judged) / len(judged), abs=1e-6) if judged else None
    assert results["zh_reply_rate"] == expected
    prompts = pyarrow.parquet.read_table(outcome / "prompts.parquet").to_pylist()
    assert [(row["kind"], row["round"], row["prompt"]) for row in prompts] == [
        ("medical", 1, "我肚子疼"),
        ("dialogue", 1, "你好"),
        ("dialogue", 2, "再见"),
    ]
    assert results["prompts"]["n"] == 3 and results["prompts"]["kinds"]["dialogue"]["n"] == 2
    assert set(results["paper"]) == {"ceval_zh", "mmlu_en", "cmmlu_en", "cmmlu_zh"}
    assert results["paper"]["ceval_zh"]["n"] == results["ceval"]["n"]
    assert results["paper"]["mmlu_en"]["n"] == results["mmlu"]["n"] / 2  # each file of two loses its first
    assert {"lpr", "wpr", "bleu_4", "rouge_l"} <= results.keys()
    assert results["router"]["English"]["tokens"] == 64
    assert set(results["language_confusion"]["language_confusion"]) == {"monolingual", "crosslingual"}
    weights = read_safetensors(outcome.parent / "model")
    assert results["memory"]["planned"] == results["memory"]["held"] == weights
    assert results["memory"]["planned_mixtral_8x7b"] == 4 * 46_702_792_704  # parameters in float32
    assert results["protocol"]["tasks"]["mmlu"] == {"num_fewshot": 2, "limit": 2}
    assert not list(Path(outcome.parent, ".aurora", "eval").iterdir())


def read_safetensors(folder: Path) -> int:
    """Bytes of all tensors, from the weights' file alone."""
    content = (folder / "model.safetensors").read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def test_group_scores_are_stock(root: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path)
    subjects = {name: read_benchmark(root / "samples" / name, name, 2, 3) for name in NAMES}
    ours, _ = score_benchmarks(PrefixLM(tiny_model(), tokenizer=tokenizer, batch_tokens=512), subjects, PARAMS)
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
    memory = ResumeCache(path)
    assert len(memory) == stop
    memory.close()
    run(place, tmp_path / "out")
    assert [(tmp_path / "out" / name).read_bytes() for name in FILES] == [
        (outcome / name).read_bytes() for name in FILES
    ]


def test_another_model_has_another_memory(place: Path, tmp_path: Path) -> None:
    settings = DENSE.model_dump()
    digest = digest_of(place / "model")
    copy = shutil.copytree(place / "model", tmp_path / "copy")
    (copy / "manifest.json").write_text("{}")  # names where a model came from, and changes no answer
    assert digest_of(copy) == digest
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    other = digest_of(copy)
    assert other != digest
    assert fingerprint(other, settings) != fingerprint(digest, settings)
    assert fingerprint(digest, settings | {"bits": 4}) != fingerprint(digest, settings)
    memory = open_resume_cache(digest, settings, tmp_path / "scratch")
    memory.put(b"key", b"value")
    assert open_resume_cache(digest, settings, tmp_path / "scratch").get(b"key") == b"value"
    assert open_resume_cache(other, settings, tmp_path / "scratch").get(b"key") is None


def stage(place: Path, **paths: Path) -> tuple[int, str, list[str]]:
    given = {
        "model": place / "model",
        "benchmarks": place / "benchmarks",
        "rows": place / "held_out.parquet",
        "prompts": place / "prompts.yaml",
        "out": place / "staged",
    } | paths
    arguments = [part for name, path in given.items() for part in (f"--{name}", str(path))]
    found = CliRunner().invoke(main, arguments)
    return (found.exit_code, found.stdout, [line for line in found.stderr.splitlines() if line.startswith("error")])


def test_a_prompt_longer_than_the_context_is_counted_and_listed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    subjects = read_subjects(place / "benchmarks", PARAMS)
    lm = PrefixLM(tiny_model(), tokenizer=tokenizer)
    lengths = {}
    for benchmark, members in subjects.items():
        for subject in members:
            task = load_task(benchmark, subject, 2)
            task.build_all_requests()
            for instance in task.instances:
                lengths[benchmark, subject.name, instance.doc_id] = len(lm.tok_encode(instance.args[0]))
    limit = sorted(lengths.values())[len(lengths) // 2]
    run(place, tmp_path / "out", PARAMS.model_copy(update={"max_length": limit}))
    results = json.loads((tmp_path / "out/results.json").read_text())
    table = pyarrow.parquet.read_table(tmp_path / "out/questions.parquet").to_pylist()
    expected = {place: length - limit for place, length in lengths.items() if length > limit}
    found = {(row["task"], row["subject"], row["id"]): row["cut_tokens"] for row in table if row["cut_tokens"]}
    assert found == expected and expected
    assert results["too_long"] == len(expected)
    assert f"{len(expected)} prompts are longer than the context" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("ceval/val", "id,question,A,B,C,D\n0,q,1,2,3,4\n", "no column 'answer'"),
        ("ceval/val", "id,question,A,B,C,D,answer\n0,q,1,2,3,4,E\n", "line 2: the answer is 'E', not A, B, C or D"),
        ("mmlu/data/test", "q,1,2,3,4,\n", "line 1: the answer is '', not A, B, C or D"),
        ("cmmlu/test", ",Question,A,B,C,D,Answer\n0,q,1,2,3,4,a\n", "line 2: the answer is 'a'"),
        ("cmmlu/test", ",Question,A,A,B,C,D,Answer\n0,q,1,2,3,4,5,A\n", "column 'A' stands twice"),
        ("ceval/dev", None, "not found, so"),
        ("mmlu/data/dev", "q,1,2,3,4,A\n", "1 questions, but num_fewshot is 5"),
        ("cmmlu/dev", ",Question,A,B,C,D,Answer\n", "0 questions, but num_fewshot is 5"),
    ],
)
def test_a_faulty_benchmark_ends_in_one_line(
    place: Path,
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    content: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aurora.model.loading.load_model", lambda *_: pytest.fail("the model was loaded"))
    shutil.copy(root / "params.yaml", tmp_path)
    shutil.copytree(place / "benchmarks", tmp_path / "benchmarks")
    file = tmp_path / "benchmarks" / path
    file = file if file.is_file() else sorted(file.glob("*.csv"))[0]
    if content is None:
        file.unlink()
    else:
        file.write_text(content, encoding="utf-8")
    code, text, errors = stage(place, benchmarks=tmp_path / "benchmarks", out=tmp_path / "out")
    assert (code, text) == (1, "")
    assert len(errors) == 1 and str(file) in errors[0] and message in errors[0], errors
    assert {entry.name for entry in tmp_path.iterdir()} == {"params.yaml", "benchmarks"}


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2", "bert", "whisper", "none of this name", None, 5])
def test_a_model_of_another_family_ends_in_one_line(
    place: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, family: object
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / "params.yaml", tmp_path)
    folder = shutil.copytree(place / "model", tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": family, "architectures": ["A"]}))
    code, text, errors = stage(place, model=folder, out=tmp_path / "out")
    assert (code, text) == (1, "") and len(errors) == 1 and str(folder) in errors[0], errors
    assert not (tmp_path / "out").exists()


def test_mistakes_are_found_before_the_model_is_loaded(
    place: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aurora.model.loading.load_model", lambda *_: pytest.fail("the model was loaded"))
    text = (root / "params.yaml").read_text(encoding="utf-8")
    faulty = shutil.copytree(place / "benchmarks", tmp_path / "benchmarks")
    for folder in ("dev", "val"):
        path = next((faulty / "ceval" / folder).glob("middle_school_biology*"))
        path.rename(path.with_name(path.name.replace("middle_school_biology", "cooking")))
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("medical: []\n", encoding="utf-8")
    for settings, paths, message in (
        (text, {"benchmarks": faulty}, "ceval subject 'cooking': lm-eval's ceval-valid has none of this name"),
        (text, {"prompts": prompts}, "prompts.yaml: medical: expected a list of prompts"),
        (
            text.replace("other_tasks: {}", "other_tasks: {hellaswagg: {num_fewshot: 0, limit: 2}}"),
            {},
            "eval.other_tasks.hellaswagg: lm-eval has no task of this name; did you mean hellaswag?",
        ),
        (text.replace("    cmmlu: {num_fewshot: 5", "    cmlu: {num_fewshot: 5"), {}, "eval.tasks.cmlu"),
    ):
        Path("params.yaml").write_text(settings, encoding="utf-8")
        code, output, errors = stage(place, **paths, out=tmp_path / "out")
        assert (code, output) == (1, "") and len(errors) == 1 and message in errors[0], errors
        assert not (tmp_path / "out").exists()


def test_other_tasks_of_lm_eval_are_scored_like_stock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import datasets

    rows = [
        {"id": str(number), "question": question, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": key}
        for number, (question, choices, key) in enumerate(
            [
                ("Which is a metal?", ["iron", "a piece of wood", "glass", "clean water"], "A"),
                ("What do plants take in?", ["salt", "sand", "light from the sun", "smoke"], "C"),
                ("Which is largest?", ["a cup", "a house", "a mountain range", "a cat"], "C"),
            ]
        )
    ]
    parts = {name: datasets.Dataset.from_list(rows) for name in ("train", "validation", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(parts))
    tokenizer = load_tokenizer(tmp_path)
    params = PARAMS.model_copy(update={"other_tasks": {"arc_easy": BenchmarkParams(num_fewshot=1, limit=None)}})
    ours, cut = score_other_tasks(PrefixLM(tiny_model(), tokenizer=tokenizer), load_other_tasks(params), params)
    stock = lm_evaluate(HFLM(tiny_model(), tokenizer=tokenizer), load_other_tasks(params)["arc_easy"])
    theirs = stock["results"]["arc_easy"]
    assert ours == {"arc_easy": {name: value for name, value in theirs.items() if isinstance(value, float)}}
    assert {"acc,none", "acc_norm,none"} <= ours["arc_easy"].keys()
    assert cut == {"arc_easy": 0}
    short = PrefixLM(tiny_model(), tokenizer=tokenizer, max_length=16)
    _, cut = score_other_tasks(short, load_other_tasks(params), params)
    assert cut == {"arc_easy": 3}
    assert capsys.readouterr().err.count("arc_easy: cut at its beginning by ") == 3


def test_a_task_without_its_data_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(SourceError, match=r"eval\.other_tasks\.arc_challenge: its data is not available"):
        load_other_task("arc_challenge", 0)


def test_a_stage_that_was_killed_goes_on_and_ends_in_the_same_bytes(place: Path, tmp_path: Path, root: Path) -> None:
    command, environment = stage_command(place, root, tmp_path, ("whole", "killed"))
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, cwd=tmp_path / "whole", check=True, **quiet)

    process = subprocess.Popen(command, cwd=tmp_path / "killed", **quiet)
    while process.poll() is None and remembered(tmp_path / "killed") < 20:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL  # in the middle, not behind its end
    before = remembered(tmp_path / "killed")
    assert before >= 20 and not (tmp_path / "killed/out").exists()
    done = subprocess.run(command, cwd=tmp_path / "killed", check=True, **quiet)
    assert done.returncode == 0 and remembered(tmp_path / "killed") == 0
    assert written(tmp_path / "killed/out") == written(tmp_path / "whole/out")


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one_and_keep_what_was_done_when_one_is_killed(
    place: Path, tmp_path: Path, root: Path
) -> None:
    command, environment = stage_command(place, root, tmp_path, ("one", "two", "killed"))
    for name in ("two", "killed"):
        add_processes(tmp_path / name, 2)
    told = {"env": environment, "capture_output": True, "text": True}
    for name in ("one", "two"):
        done = subprocess.run(command, cwd=tmp_path / name, check=True, **told)
        assert len(done.stdout.splitlines()) == 1 and remembered(tmp_path / name) == 0
    assert written(tmp_path / "two/out") == written(tmp_path / "one/out")

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path / "killed", env=environment, stdout=log, stderr=log)
    while process.poll() is None and remembered(tmp_path / "killed") < 20:
        time.sleep(0.02)
    (second,) = (
        each for each in psutil.Process(process.pid).children(recursive=True) if each.environ().get("RANK") == "1"
    )
    second.kill()
    assert process.wait() == 1
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: eval: a process ended with status -9")
    before = remembered(tmp_path / "killed")
    assert before >= 20 and not (tmp_path / "killed/out").exists()
    add_processes(tmp_path / "killed", 1)  # another number takes what is there
    subprocess.run(command, cwd=tmp_path / "killed", check=True, **told)
    assert written(tmp_path / "killed/out") == written(tmp_path / "one/out")
    assert not list((tmp_path / "killed/.aurora/eval").glob("*.1.sqlite"))


def stage_command(place: Path, root: Path, folder: Path, names: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The stage's command and environment; each of the folders `names` gets the params."""
    params = (root / "params.yaml").read_text(encoding="utf-8").replace("limit: null", "limit: 4")
    params = params.replace("batch_tokens: 1024", "batch_tokens: 128").replace("bits: 4", "bits: 32")
    command = [sys.executable, "-m", "stages.eval", "--out", "out"]
    for option, name in (
        ("model", "model"),
        ("benchmarks", "benchmarks"),
        ("rows", "held_out.parquet"),
        ("prompts", "prompts.yaml"),
    ):
        command += [f"--{option}", str(place / name)]
    for name in names:
        (folder / name).mkdir()
        (folder / name / "params.yaml").write_text(params, encoding="utf-8")
    return command, os.environ | {"PYTHONPATH": str(root)}


def add_processes(folder: Path, count: int) -> None:
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    start, end = text.index("\neval:"), text.index("\ncheckpoints:")
    section = re.sub(r"  processes: \d+\n", "", text[start:end])
    section = section.replace("\neval:\n", f"\neval:\n  processes: {count}\n")
    (folder / "params.yaml").write_text(text[:start] + section + text[end:], encoding="utf-8")


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def remembered(folder: Path) -> int:
    """Answers in the memory of an unfinished evaluation."""
    total = 0
    for path in folder.glob(".aurora/eval/*.sqlite"):
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            total += database.execute("SELECT count(*) FROM answers").fetchone()[0]
        except sqlite3.OperationalError:  # not there yet, or being written
            pass
        finally:
            database.close()
    return total
