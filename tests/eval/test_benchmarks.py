"""Benchmark files, and prompts that are those of stock lm-eval to the letter."""

import csv
import json
import shutil
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from aurora.core.errors import DataError, ParamsError
from aurora.eval.benchmarks import read_benchmark
from aurora.eval.tasks import CMMLU_CATEGORY, load_groups, load_other_task, load_task

NAMES = ("ceval", "mmlu", "cmmlu")
STOCK = Path(lm_eval.tasks.__file__).parent
STOCK_FILES = {
    "ceval": "ceval/ceval-valid_{}.yaml",
    "mmlu": "mmlu/default/mmlu_{}.yaml",
    "cmmlu": "cmmlu/cmmlu_{}.yaml",
}
SPLITS = {"ceval": ("dev", "val"), "mmlu": ("dev", "test"), "cmmlu": ("dev", "test")}


def upstream_rows(root: Path, benchmark: str, split: str, subject: str) -> list[dict]:
    """Rows in the fields of the data set on the hub, read without the code under test."""
    name = {"ceval": f"{subject}_{split}.csv", "mmlu": f"{subject}_{split}.csv", "cmmlu": f"{subject}.csv"}[benchmark]
    base = root / "data" if benchmark == "mmlu" else root
    with open(base / split / name, encoding="utf-8", newline="") as file:
        if benchmark != "mmlu":
            return list(csv.DictReader(file))
        return [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in csv.reader(file)]


def stock_task(root: Path, benchmark: str, subject: str, folder: Path) -> ConfigurableTask:
    """lm-eval's own task class on lm-eval's own file, fed by the datasets library."""
    files = {}
    for split in SPLITS[benchmark]:
        path = folder / f"{benchmark}_{subject}_{split}.jsonl"
        rows = upstream_rows(root, benchmark, split, subject)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[split] = str(path)
    config = load_yaml(STOCK / STOCK_FILES[benchmark].format(subject))
    config.pop("tag", None)
    config |= {"dataset_path": "json", "dataset_name": None, "num_fewshot": 5}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(folder / "cache")}
    return ConfigurableTask(config=config)


def subjects_of(root: Path, benchmark: str) -> list[str]:
    split = SPLITS[benchmark][1]
    base = root / "data" if benchmark == "mmlu" else root
    return sorted(path.stem.removesuffix(f"_{split}") for path in (base / split).glob("*.csv"))


def assert_same_requests(ours: ConfigurableTask, stock: ConfigurableTask) -> int:
    ours.build_all_requests()
    stock.build_all_requests()
    assert [request.args for request in ours.instances] == [request.args for request in stock.instances]
    assert [request.doc_id for request in ours.instances] == [request.doc_id for request in stock.instances]
    for one, other in zip(ours.eval_docs, stock.eval_docs, strict=True):
        assert ours.doc_to_target(one) == stock.doc_to_target(other)
        assert ours.doc_to_choice(one) == stock.doc_to_choice(other)
    return len(ours.instances)


@pytest.mark.parametrize("benchmark", NAMES)
def test_prompts_of_the_samples_are_stock(root: Path, tmp_path: Path, benchmark: str) -> None:
    subject = read_benchmark(root / "samples" / benchmark, benchmark, 5)[0]
    stock = stock_task(root / "samples" / benchmark, benchmark, subject.name, tmp_path)
    assert assert_same_requests(load_task(benchmark, subject, 5), stock) == 4 * len(subject.questions)


@pytest.mark.parametrize("benchmark", NAMES)
def test_prompts_of_real_subjects_are_stock(real_data: Path, tmp_path: Path, benchmark: str) -> None:
    root = real_data / "benchmarks" / benchmark
    subject = read_benchmark(root, benchmark, 5)[1]
    assert_same_requests(load_task(benchmark, subject, 5), stock_task(root, benchmark, subject.name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("benchmark", "requests"), [("ceval", 5384), ("mmlu", 56168), ("cmmlu", 46328)])
def test_prompts_of_the_full_suite_are_stock(real_data: Path, tmp_path: Path, benchmark: str, requests: int) -> None:
    root = real_data / "benchmarks" / benchmark
    found = 0
    for subject in read_benchmark(root, benchmark, 5):
        stock = stock_task(root, benchmark, subject.name, tmp_path)
        found += assert_same_requests(load_task(benchmark, subject, 5), stock)
    assert found == requests


@pytest.mark.parametrize(
    ("benchmark", "subjects", "questions"), [("ceval", 52, 1346), ("mmlu", 57, 14042), ("cmmlu", 67, 11582)]
)
def test_real_files_are_read_whole(real_data: Path, benchmark: str, subjects: int, questions: int) -> None:
    found = read_benchmark(real_data / "benchmarks" / benchmark, benchmark, 5)
    assert len(found) == subjects
    assert sum(len(subject.questions) for subject in found) == questions
    assert all(len(subject.shots) == 5 for subject in found)


@pytest.mark.parametrize("benchmark", NAMES)
def test_samples_have_questions_and_shots(root: Path, benchmark: str) -> None:
    found = read_benchmark(root / "samples" / benchmark, benchmark, 5)
    assert sum(len(subject.questions) for subject in found) >= 20
    assert [len(subject.questions) for subject in read_benchmark(root / "samples" / benchmark, benchmark, 5, 2)] == [
        2
    ] * len(found)


def test_zero_shots_need_no_dev_files(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / "samples" / "ceval", tmp_path / "ceval")
    shutil.rmtree(folder / "dev")
    subject = read_benchmark(folder, "ceval", 0)[0]
    task = load_task("ceval", subject, 0)
    task.build_all_requests()
    assert task.instances[0].args[0].startswith(task.config.description)
    assert task.instances[0].args[0].count("答案：") == 1


def test_texts_that_look_like_numbers_or_nothing_stay(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"anatomy_{split}.csv").write_text('"Which?",None,0.10,NA,"a, b",D\n', encoding="utf-8")
    (subject,) = read_benchmark(tmp_path, "mmlu", 1)
    assert subject.questions == [{"question": "Which?", "choices": ["None", "0.10", "NA", "a, b"], "answer": 3}]


def broken(root: Path, tmp_path: Path, benchmark: str, path: str, content: str | None) -> Path:
    folder = shutil.copytree(root / "samples" / benchmark, tmp_path / benchmark)
    target = next(folder.glob(path))
    if content is None:
        target.unlink()
    else:
        target.write_text(content, encoding="utf-8")
    return folder


HEADER = "id,question,A,B,C,D,answer\n"


@pytest.mark.parametrize(
    ("benchmark", "path", "content", "message"),
    [
        ("ceval", "val/*", "id,question,A,B,C,answer\n0,q,1,2,3,A\n", r"no column 'D' in its header id,question"),
        ("cmmlu", "test/*", ",Question,A,B,C,D\n0,q,1,2,3,4\n", r"no column 'Answer'"),
        ("ceval", "val/*", HEADER + "0,q,1,2,3,4,A\n1,q,1,2,3,4,E\n", r"line 3: the answer is 'E', not A, B, C or D"),
        ("ceval", "val/*", HEADER + "0,q,1,2,3,4,A,B\n", r"line 2: 8 fields under 7 columns"),
        ("ceval", "val/*", HEADER, r"no questions"),
        ("ceval", "val/*", "", r"empty; it needs a header"),
        ("mmlu", "data/test/*", "q,1,2,3,A\n", r"line 1: 5 fields, not question, A, B, C, D, answer"),
        ("mmlu", "data/test/*", "q,1,2,3,4,b\n", r"line 1: the answer is 'b'"),
        ("mmlu", "data/test/*", 'q,"1,2,3,4,A\n', r"not CSV in UTF-8"),
        ("cmmlu", "dev/*", None, r"not found, so \w+ has no shots"),
        ("ceval", "dev/*", HEADER + "0,q,1,2,3,4,A\n", r"1 questions, but num_fewshot is 5"),
    ],
)
def test_faulty_files_are_named(
    root: Path, tmp_path: Path, benchmark: str, path: str, content: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_benchmark(broken(root, tmp_path, benchmark, path, content), benchmark, 5)


def test_a_folder_of_another_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no val/\*_val.csv, where ceval keeps its questions"):
        read_benchmark(tmp_path, "ceval", 5)
    with pytest.raises(DataError, match="ceval: not found; it is written by: dvc repro fetch@ceval"):
        read_benchmark(tmp_path / "ceval", "ceval", 5)


def test_a_subject_that_lm_eval_does_not_know_is_named(root: Path) -> None:
    subject = read_benchmark(root / "samples" / "ceval", "ceval", 5)[0]
    from dataclasses import replace

    with pytest.raises(DataError, match="ceval subject 'cooking': lm-eval's ceval-valid has none of this name"):
        load_task("ceval", replace(subject, name="cooking"), 5)


def test_each_stock_subject_of_cmmlu_has_a_category() -> None:
    assert set(CMMLU_CATEGORY) == {path.stem for path in (STOCK / "cmmlu").glob("cmmlu_*.yaml")}


def test_categories_of_mmlu_are_those_of_lm_eval(root: Path) -> None:
    subjects = read_benchmark(root / "samples" / "mmlu", "mmlu", 5)
    tasks = {f"mmlu_{subject.name}": load_task("mmlu", subject, 5) for subject in subjects}
    groups = load_groups("mmlu", tasks)
    assert {task.task_name for task in groups["mmlu"].get_all_tasks()} == set(tasks)
    for name, group in groups.items():
        for task in group.get_all_tasks() if name != "mmlu" else ():
            assert load_yaml(STOCK / "mmlu" / "default" / f"{task.task_name}.yaml")["tag"] == f"{name}_tasks"


@pytest.mark.slow
def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ParamsError, match=r"eval.other_tasks.hellaswagg: .*did you mean hellaswag\?"):
        load_other_task("hellaswagg", 0)
