"""Evaluation of bases with windows or recurrence, of several end tokens, and of tasks of one's own."""

import json
from pathlib import Path

import pyarrow
import pytest
import torch
from lm_eval.tasks import TaskManager
from stand_ins.tiny_mixtral import load_tokenizer, tiny_model
from stand_ins.training_case import rows
from stand_ins.zoo import build

from aurora.core.errors import DataError
from aurora.core.parquet import write_parquet
from aurora.eval.benchmarks import read_benchmark
from aurora.eval.evaluate import load_other_tasks, score_benchmarks, score_other_tasks
from aurora.eval.held_out import held_out_loss
from aurora.eval.params import BenchmarkParams, Eval, OtherTask, Replies
from aurora.eval.prefix import PrefixLM
from aurora.eval.replies import end_tokens, generate

PARAMS = Eval(
    tasks={"ceval": BenchmarkParams(num_fewshot=2, limit=1)},
    batch_tokens=512,
    max_length=4096,
    chat_template=True,
    loss_rows=None,
    threads=1,
    replies=Replies(prompts=1, max_new_tokens=4, batch_size=2),
)


@pytest.mark.parametrize("kind", ["mixtral", "mistral", "gemma3_text", "gpt_oss", "qwen3_next"])
def test_held_out_loss_is_that_of_each_row_alone_whatever_the_batch(kind: str, tmp_path: Path):
    changes = {"sliding_window": 8} if kind == "mixtral" else {}
    model, path = build(kind, **changes), tmp_path / "held_out.parquet"
    table = rows(6, seed=1)
    write_parquet(path, table)
    total, count = 0.0, 0
    for row in table.to_pylist():
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    for batch_tokens in (16, 64, 4096):
        found = held_out_loss(model, path, None, batch_tokens)
        assert found == pytest.approx(total / count, abs=1e-5)


def test_a_token_beyond_the_embeddings_is_one_line(tmp_path: Path):
    path = tmp_path / "held_out.parquet"
    write_parquet(path, pyarrow.table({"input_ids": [[1, 32000, 2]], "labels": [[-100, 32000, 2]]}))
    with pytest.raises(DataError, match="token 32000 stands in a row, but the model knows 32000"):
        held_out_loss(tiny_model(), path, None, 64)


def test_replies_end_at_any_end_of_the_model(tmp_path: Path, monkeypatch):
    tokenizer, model = load_tokenizer(tmp_path), build("llama")
    prompt = [1, 5, 6, 7]
    (reply,) = generate(model, [prompt], 8, frozenset({2}))
    monkeypatch.setattr(model.generation_config, "eos_token_id", [9, reply[3]])
    ends = end_tokens(model, tokenizer)
    assert ends == {2, 9, reply[3]}
    assert generate(model, [prompt], 8, ends) == [reply[: reply.index(reply[3])]]


def test_the_chat_template_asks_as_lm_eval_does_with_it(root: Path, tmp_path: Path):
    """Few-shot questions are turns of their own, which is the default of `lm_eval --apply_chat_template`."""
    from lm_eval import evaluate as lm_evaluate

    tokenizer = load_tokenizer(tmp_path)
    ours, theirs = ([], [])
    subjects = {"ceval": read_benchmark(root / "samples/ceval", "ceval", 2, 1)[:1]}
    lm = PrefixLM(tiny_model(), tokenizer=tokenizer, batch_tokens=512)
    original = lm.loglikelihood
    lm.loglikelihood = lambda requests: ours.extend(requests) or original(requests, disable_tqdm=True)
    score_benchmarks(lm, subjects, PARAMS)
    (name,) = {request.task_name for request in ours}
    document = ours[0].doc
    shots = subjects["ceval"][0].shots[:2]

    def text(doc: dict) -> str:
        lines = [doc["question"].strip(), *(f"{letter}. {doc[letter]}" for letter in "ABCD"), "答案："]
        return "\n".join(lines)

    turns = []
    for shot in shots:
        turns += [{"role": "user", "content": text(shot)}, {"role": "assistant", "content": shot["answer"]}]
    turns.append({"role": "user", "content": text(document)})
    prompt = ours[0].args[0]
    assert prompt.count("[INST]") == 3 and name.startswith("ceval")
    for turn in turns:
        assert turn["content"] in prompt
    # lm-eval's own task, given the same documents, builds the same prompt.
    stock = PrefixLM(tiny_model(), tokenizer=tokenizer, batch_tokens=512)
    stock.loglikelihood = lambda requests: theirs.extend(requests) or original(requests, disable_tqdm=True)
    from lm_eval.api.task import ConfigurableTask

    from aurora.eval.tasks import load_task

    task = load_task("ceval", subjects["ceval"][0], 2)
    task.build_all_requests = ConfigurableTask.build_all_requests.__get__(task)
    task.fewshot_context = ConfigurableTask.fewshot_context.__get__(task)
    lm_evaluate(stock, {"tasks": {name: task}, "groups": {}}, apply_chat_template=True, fewshot_as_multiturn=True)
    assert [request.args for request in theirs] == [request.args for request in ours]


@pytest.mark.minutes
def test_a_task_file_of_ones_own_with_25_shots(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = [{"question": f"{n} + 1 =", "choices": ["1", str(n + 1)], "answer": 1} for n in range(1, 30)]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "own/mine.yaml").write_text(
        "task: my_sums\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/own/questions.jsonl}}}}\n"
        "test_split: test\nfewshot_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    params = PARAMS.model_copy(
        update={"other_tasks": {"my_sums": OtherTask(num_fewshot=25, limit=2)}, "chat_template": False}
    )
    others = load_other_tasks(params, tmp_path / "own")
    lm = PrefixLM(tiny_model(), tokenizer=load_tokenizer(tmp_path), batch_tokens=512)
    results, _ = score_other_tasks(lm, others, params)
    assert 0 <= results["my_sums"]["acc,none"] <= 1
    assert "my_sums" in TaskManager(include_path=str(tmp_path / "own")).all_tasks
