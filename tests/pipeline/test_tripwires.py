"""Faults planted one at a time in the small profile: each is told by a measure beyond chance, or stops the run."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import safetensors.torch
from scipy.stats import fisher_exact, mannwhitneyu
from stand_ins.stage_runs import ROOT, fetch, read_yaml, run, stages, write_params

from aurora.core.errors import DataError
from aurora.core.language import language
from aurora.core.parquet import write_parquet
from aurora.eval.answers import CLOSED, normalised
from aurora.report.comparison import compare_questions, read_questions

TRAINED = ("sft", "merge", "eval@tuned")
BOS, EOS = 1, 2
# Mistral's marks and those of another template ("### Human:", "### Assistant:") in the pieces of Mistral v1.
TEMPLATE = (([733, 16289, 28793], [774, 10649, 28747]), ([733, 28748, 16289, 28793], [774, 21631, 28747]))
LEVEL = 0.01


def slow(test: Callable) -> Callable:
    """Marks a test that runs stages."""
    return pytest.mark.slow(pytest.mark.timeout(3600)(test))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small profile, run without a fault as far as eval@tuned, but for what no tripwire reads."""
    folder = tmp_path_factory.mktemp("honest")
    params = read_yaml(ROOT / "params.yaml")
    params["merge"]["drift"] = params["eval"]["router_tokens"] = None
    params["sft"]["eval_steps"] = 1000
    shutil.copytree(ROOT / "samples", folder / "samples")
    (folder / "samples/prompts.yaml").write_text("first_words: [你好]\n", encoding="utf-8")
    write_params(folder, params)
    fetch(folder, params, *(name for name in params["sources"] if name != "language_confusion"))
    (folder / "data/raw/prompts").mkdir()
    stages(folder, "clean", "format", *TRAINED)
    return folder


def copied(honest: Path, folder: Path) -> Path:
    """The honest run in `folder`, by links; what is planted replaces a file and never changes it."""
    shutil.copytree(honest, folder, ignore=shutil.ignore_patterns(".aurora"), copy_function=os.link, dirs_exist_ok=True)
    return folder


def written(path: Path, content: bytes | str) -> None:
    path.unlink()
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def replies(folder: Path) -> list[dict]:
    return parquet.read_table(folder / "data/eval/tuned/replies.parquet").to_pylist()


def right(rows: list[dict]) -> list[bool]:
    closed = [row for row in rows if len(row["answer"]) <= CLOSED and language(row["answer"]) == "Chinese"]
    return [normalised(row["reply"]) == normalised(row["answer"]) for row in closed]


def told(honest: Path, faulty: Path) -> set[str]:
    """Measures of eval@tuned that differ between two runs beyond chance, at 1 %; for benchmarks by `aurora compare`."""
    before, after = (read_questions(folder / "data/eval/tuned") for folder in (honest, faulty))
    found = {item.name for item in compare_questions(before, after)[0] if not item.by_chance}
    rows = [replies(folder) for folder in (honest, faulty)]
    for name, sides in (
        ("exact_match", [right(side) for side in rows]),
        ("zh_reply_rate", [[row["language"] == "Chinese" for row in side] for side in rows]),
    ):
        table = [[sum(side), len(side) - sum(side)] for side in sides]
        if fisher_exact(table).pvalue < LEVEL:
            found.add(name)
    lengths = [[len(row["reply"]) for row in side] for side in rows]
    if mannwhitneyu(*lengths).pvalue < LEVEL:
        found.add("mean_length")
    losses = [json.loads((folder / "data/eval/tuned/results.json").read_text())["loss"] for folder in (honest, faulty)]
    if not 0.8 < losses[1] / losses[0] < 1.25:
        found.add("loss")
    return found


def with_rows(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Plants a change of every row of train.parquet."""

    def plant(folder: Path) -> None:
        path = folder / "data/format/train.parquet"
        table = parquet.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            change(row)
        path.unlink()
        write_parquet(path, pyarrow.Table.from_pylist(rows, schema=table.schema))

    return plant


def shift_labels(row: dict) -> None:
    row["labels"] = [-100, *row["labels"][:-1]]


def train_prompts(row: dict) -> None:
    row["labels"] = list(row["input_ids"])


def leave_the_end_untrained(row: dict) -> None:
    row["labels"] = [-100 if label == EOS else label for label in row["labels"]]


def change_the_template(row: dict) -> None:
    found: dict[str, list[int]] = {"input_ids": [], "labels": []}
    start, length = 0, len(row["input_ids"])
    while start < length:
        for mark, other in TEMPLATE:
            if row["input_ids"][start : start + len(mark)] == mark:
                found["input_ids"] += other
                found["labels"] += [-100] * len(other)
                start += len(mark)
                break
        else:
            for name, values in found.items():
                values.append(row[name][start])
            start += 1
    row |= found


def double_bos(row: dict) -> None:
    row["input_ids"] = [BOS, *row["input_ids"]]
    row["labels"] = [-100, *row["labels"]]


def hold_nothing_out(folder: Path) -> None:
    tables = [parquet.read_table(folder / f"data/format/{name}.parquet") for name in ("train", "held_out")]
    path = folder / "data/format/train.parquet"
    path.unlink()
    held_out = tables[1].select(tables[0].column_names)
    write_parquet(path, pyarrow.concat_tables([tables[0], *[held_out] * 4]))


def merge_again(folder: Path) -> None:
    params = read_yaml(folder / "params.yaml")
    params["sources"]["base"]["uri"] = "models/merged"
    (folder / "params.yaml").unlink()
    write_params(folder, params)
    fetch(folder, params, "base")


def scale_the_adapter(folder: Path) -> None:
    path = folder / "models/adapter/adapter_config.json"
    config = json.loads(path.read_text())
    written(path, json.dumps(config | {"lora_alpha": 4 * config["lora_alpha"]}))


def permute_routers(folder: Path) -> None:
    for path in (folder / "models/merged").glob("*.safetensors"):
        tensors = safetensors.torch.load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("gate.weight"):
                tensors[name] = tensor.roll(1, dims=0).contiguous()
        path.unlink()
        safetensors.torch.save_file(tensors, path, {"format": "pt"})


def swap_shots(folder: Path) -> None:
    files = sorted((folder / "data/raw/benchmark/mmlu/data/dev").glob("*.csv"))
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1], strict=True):
        written(path, content)


def rotate_letters(folder: Path) -> None:
    for path in (folder / "data/raw/benchmark/cmmlu/test").glob("*.csv"):
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        path.unlink()
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *([*row[:-1], "ABCD"["DABC".index(row[-1])]] for row in rows)])


def other_seed(folder: Path) -> None:
    path = folder / "params.yaml"
    params = read_yaml(path)
    params["sft"]["seed"] += 1
    path.unlink()
    write_params(folder, params)


def run_with_transposed_blocks(folder: Path) -> None:
    program = """
import stages, aurora.model.nf4 as nf4
honest = nf4.dequantise
def transposed(*given):
    dense = honest(*given)
    return dense.reshape(-1, 64).T.reshape(dense.shape)
nf4.dequantise = transposed
from stages.eval import main
main()
"""
    command = read_yaml(ROOT / "dvc.yaml")["stages"]["eval"]["do"]["cmd"]
    command = command.replace("${key}", "tuned").replace("${item.model}", "models/merged")
    run(folder, "-c", program, *command.split()[3:])


# Fault: what plants it, the stages that run then, and the measures that have to tell it.
MEASURED = {
    "labels shifted by one": (
        with_rows(shift_labels),
        TRAINED,
        {"ceval", "cmmlu", "exact_match", "loss", "mean_length", "zh_reply_rate"},
    ),
    "prompt tokens trained": (with_rows(train_prompts), TRAINED, {"loss"}),
    "wrong template": (
        with_rows(change_the_template),
        TRAINED,
        {"exact_match", "loss", "mean_length", "zh_reply_rate"},
    ),
    "adapter of another scale": (
        scale_the_adapter,
        ("merge", "eval@tuned"),
        {"ceval", "cmmlu", "mmlu", "exact_match", "loss", "mean_length", "zh_reply_rate"},
    ),
    "NF4 blocks transposed": (
        run_with_transposed_blocks,
        (),
        {"ceval", "cmmlu", "mmlu", "exact_match", "loss", "mean_length", "zh_reply_rate"},
    ),
    "a router permuted": (permute_routers, ("eval@tuned",), {"ceval", "cmmlu", "exact_match", "loss", "zh_reply_rate"}),
    "shots of another subject": (swap_shots, ("eval@tuned",), {"mmlu"}),
    "held-out rows in training": (hold_nothing_out, TRAINED, {"exact_match", "loss"}),
}
STOPPED = {
    "answer letters rotated": "`aurora compare` stops: the right answers differ",
    "end token untrained": "sft stops: the tune would not learn where to stop",
    "double BOS": "sft stops: a row begins with two begin tokens",
    "adapter merged twice": "merge stops: the base is not the one of the adapter",
    "contaminated rows": "clean drops and counts them",
}


def test_the_table_in_docs_is_this_suite() -> None:
    text = (ROOT / "docs/miniature.md").read_text(encoding="utf-8").partition("## Tripwires")[2]
    table = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)[1:])
    told_by = {name: ", ".join(f"`{item}`" for item in sorted(case[2])) for name, case in MEASURED.items()}
    assert table == told_by | STOPPED
    assert len(table) >= 12


@slow
@pytest.mark.parametrize("fault", MEASURED)
def test_a_fault_is_told_beyond_chance(honest: Path, tmp_path: Path, fault: str) -> None:
    plant, ran, expected = MEASURED[fault]
    faulty = copied(honest, tmp_path / "faulty")
    plant(faulty)
    stages(faulty, *ran)
    found = told(honest, faulty)
    print(f"told by: {', '.join(sorted(found)) or 'nothing'}")
    assert expected <= found


@slow
@pytest.mark.parametrize(
    ("plant", "ran"), [(lambda _: None, ("eval@tuned",)), (other_seed, TRAINED)], ids=["again", "other seed"]
)
def test_a_run_without_a_fault_is_told_by_nothing(honest: Path, tmp_path: Path, plant, ran) -> None:
    again = copied(honest, tmp_path / "again")
    plant(again)
    stages(again, *ran)
    assert told(honest, again) == set()


@slow
@pytest.mark.parametrize(
    ("change", "message"),
    [(leave_the_end_untrained, "would not learn where to stop"), (double_bos, "begins with two begin tokens")],
)
def test_rows_with_wrong_marks_are_not_trained_on(honest: Path, tmp_path: Path, change, message) -> None:
    faulty = copied(honest, tmp_path / "faulty")
    with_rows(change)(faulty)
    with pytest.raises(AssertionError, match=message):
        stages(faulty, "sft")


@slow
def test_rotated_letters_are_not_compared(honest: Path, tmp_path: Path) -> None:
    faulty = copied(honest, tmp_path / "faulty")
    rotate_letters(faulty)
    stages(faulty, "eval@tuned")
    with pytest.raises(DataError, match=r"cmmlu .*: the right answer is D in A and A in B"):
        told(honest, faulty)


@slow
def test_an_adapter_is_not_merged_twice(honest: Path, tmp_path: Path) -> None:
    faulty = copied(honest, tmp_path / "faulty")
    merge_again(faulty)
    with pytest.raises(AssertionError, match="trained on a base with weights"):
        stages(faulty, "merge")


@slow
def test_contaminated_rows_do_not_reach_training(honest: Path, tmp_path: Path) -> None:
    faulty = copied(honest, tmp_path / "faulty")
    path = faulty / "data/raw/instructions/alpaca_data_zh_51k/alpaca_data_zh_51k.json"
    rows = json.loads(path.read_text())
    for file in sorted((faulty / "data/raw/benchmark/ceval/val").glob("*.csv")):
        with file.open(newline="") as lines:
            for _, question, *options, answer in list(csv.reader(lines))[1:]:
                listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
                rows.append({"instruction": f"{question}\n{listed}", "input": "", "output": f"答案是{answer}。"})
    planted = len(rows) - len(json.loads(path.read_text()))
    written(path, json.dumps(rows, ensure_ascii=False))
    stages(faulty, "clean")
    counts = json.loads((faulty / "data/clean/metrics.json").read_text())["total"]["dropped"]
    before = json.loads((honest / "data/clean/metrics.json").read_text())["total"]["dropped"]
    assert sum(counts.values()) == sum(before.values()) + planted
    assert counts["contaminated"] >= planted == 96
