"""Runs of the project's own code on the card that is not there, each as a line of JSON.

PYTHONPATH=.:tests python -m stand_ins.fake_cuda.cases '{"what": "train", "rows": 2, "length": 1024}' …
"""

# ruff: noqa: E402
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from stand_ins.fake_cuda.card import MEMORY_GIB, lend

lend()

import datasets
import numpy
import pyarrow
import torch
import transformers
from stand_ins.fake_cuda import meter as counting
from stand_ins.fake_cuda.mixtral import MODE, SHAPE, answers, held, mixtral
from tokenizers import Tokenizer, models
from torch.utils._python_dispatch import _disable_current_modes
from transformers import MixtralConfig, PreTrainedTokenizerFast, TrainerCallback

from aurora.core.parquet import write_parquet
from aurora.eval.held_out import SLICE
from aurora.model.folder import meta_model
from aurora.pipeline.params import Params, load_params
from aurora.sft.footprint import inference_memory
from aurora.sft.plan import measure_rows, training_plan

ROOT = Path(__file__).parents[3]
GIB = 2**30
CARD = int(MEMORY_GIB * GIB)
datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()


@dataclass(frozen=True)
class Case:
    """What is run, and on how much."""

    what: str
    layers: int = 2
    rows: int = 2
    length: int = 1024
    """Tokens of a row, of a prompt, of a pass; or of the chat before the token that is counted."""
    routing: str = "balanced"
    compute_dtype: str = "bfloat16"
    sft: dict = field(default_factory=dict)
    """Settings of sft beside the paper's, and under `lora` those of its adapter."""
    table: bool = False
    """Whether stderr gets where the time goes."""

    @property
    def config(self) -> MixtralConfig:
        return MixtralConfig(**SHAPE, num_hidden_layers=self.layers, architectures=["MixtralForCausalLM"])

    @property
    def skeleton(self) -> transformers.MixtralForCausalLM:
        with torch.device("meta"):
            return transformers.MixtralForCausalLM(self.config)

    @property
    def params(self) -> Params:
        """The paper's profile in one micro-batch a step, with the settings of this case."""
        params = load_params(ROOT / "profiles" / "paper.yaml")
        precision = {"bfloat16": "bf16", "float16": "fp16"}[self.compute_dtype]
        changes = {
            "per_device_train_batch_size": self.rows, "gradient_accumulation_steps": 1, "num_train_epochs": 1,
            "effective_batch_size": self.rows, "stop_after_steps": None, "eval_steps": 10**6, "save_steps": 10**6,
            "optim": "adamw_torch_fused", "precision": precision, "keep_checkpoints": (),
        } | self.sft  # fmt: skip
        changes["lora"] = params.sft.lora.model_copy(update=changes.get("lora", {}))
        quantization = params.quantization.model_copy(update={"compute_dtype": self.compute_dtype})
        return params.model_copy(update={"sft": params.sft.model_copy(update=changes), "quantization": quantization})


def tokenizer() -> PreTrainedTokenizerFast:
    """Enough of a tokeniser for a collator."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>", padding_side="left")


@contextmanager
def folder(case: Case) -> Iterator[Path]:
    """A base's config.json and rows, every token trained: one micro-batch, or documents that fill packed rows."""
    sft, lengths = case.params.sft, [case.length] * case.rows
    if sft.packing:
        sizes = numpy.random.default_rng(0).integers(120, 1025, size=4000)
        lengths = sizes[numpy.cumsum(sizes) <= sft.packing_length * case.rows].tolist()
        lengths[-1] += sft.packing_length * case.rows - sum(lengths)  # whole rows, as a run has them
    kind = pyarrow.list_(pyarrow.int32())
    with TemporaryDirectory() as name:
        for split, sizes in (("train", lengths), ("held_out", lengths[:1])):
            ids = pyarrow.array([[1, *range(3, size + 2)] for size in sizes], kind)
            columns = {"id": [f"{split}{number}" for number in range(len(sizes))], "input_ids": ids, "labels": ids}
            write_parquet(Path(name) / f"{split}.parquet", pyarrow.table(columns))
        case.config.save_pretrained(name)
        yield Path(name)


def real(function):
    """`function` on real tensors of the CPU, as the loader of batches gives them."""

    def outside(*args, **options):
        with _disable_current_modes():
            return function(*args, **options)

    return outside


def train(case: Case, model, meter: counting.Meter) -> dict:
    """The project's trainer, one optimiser step."""
    from aurora.sft import train as training
    from aurora.sft import trainer as trainers
    from aurora.sft.checkpoints import Checkpoints
    from aurora.sft.curves import Live

    params = case.params
    meter.masked = True
    steps = []

    class Step(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            meter.clear()

        def on_step_end(self, *args, **kwargs):
            steps.append(meter.result())
            if case.table:
                print(meter.table(), file=sys.stderr)

    with (
        folder(case) as place,
        mock.patch("aurora.model.loading.load_model", lambda *args, **options: model),
        mock.patch("aurora.model.loading.load_tokenizer", lambda *args: tokenizer()),
        mock.patch.object(trainers.EpochOrder, "__iter__", lambda self: iter(range(self.rows))),
        mock.patch.object(trainers.LabelledPositionsTrainer, "_save_checkpoint", lambda *args: None),
        mock.patch.object(trainers.LabelledPositionsTrainer, "evaluate", lambda *args, **options: {}),
    ):
        training.be_deterministic()
        checkpoints = Checkpoints(place / "scratch" / "checkpoints", 2)
        with MODE, answers(meter):
            trainer = training.build_trainer(
                place, place, params.sft, params.quantization, place / "scratch", checkpoints
            )
            trainer.remove_callback(Live)
            collate = trainer.data_collator

            def collated(examples):
                batch = real(collate)(examples)
                if "cu_seq_lens_q" in batch:
                    with _disable_current_modes():
                        meter.documents = batch["cu_seq_lens_q"].diff().tolist()
                return batch

            trainer.data_collator = collated
            trainer.args.eval_on_start = trainer.args.dataloader_pin_memory = False
            trainer.add_callback(Step())
            meter.count(tensor for tensor in trainer.model.parameters() if tensor.is_cuda)
            with meter:
                trainer.train()
        rows = measure_rows(place / "train.parquet")
        skeleton = meta_model(place)
        planned = training_plan(params.sft, params.quantization, skeleton, 0, rows, {}, CARD)
        tokens = params.sft.packing_length * case.rows if params.sft.packing else rows.tokens
        return steps[-1] | {
            "tokens": tokens,
            "planned_gib": round(planned.training_bytes / GIB, 3),
            "trained_dtype": str(next(p.dtype for p in trainer.model.parameters() if p.requires_grad)),
        }


def questions(case: Case, model, meter: counting.Meter) -> dict:
    """A pass of `length` tokens on a cache of 3,000, in rows that share no more than that."""
    from aurora.eval.prefix import PassRunner
    from aurora.eval.token_tree import plan_passes

    shared = list(range(3, 3003))
    rows = [[1, *shared, 4000 + number, *range(5000, 5126)] for number in range(case.length // 127)]
    steps = plan_passes(rows, case.length)
    runner = PassRunner(model)
    results = []
    with MODE, answers(meter), meter:
        for step in steps:
            meter.clear()
            runner.run(step)
            results.append((len(step.tokens), meter.result()))
            if case.table and len(step.tokens) > 3001:
                print(meter.table(), file=sys.stderr)
    tokens, found = max(results, key=lambda pair: pair[0])
    return found | {"tokens": tokens, "planned_gib": inference(case, tokens, 3001, 0)}


def replies(case: Case, model, meter: counting.Meter) -> dict:
    """One new token of `rows` replies: the second of three forward passes less the first of two."""
    from aurora.eval.replies import generate

    meter.masked = case.rows > 1
    counted = []
    prompts = [[1, *range(3, case.length + 2)]] * case.rows
    for new in (2, 3):
        with MODE, answers(meter), meter:
            meter.clear()
            generate(model, prompts, new, frozenset([2]))
            counted.append(meter.result())
            if case.table:
                print(meter.table(), file=sys.stderr)
    replying = case.rows * (case.length + 3)
    return less(*counted) | {"planned_gib": inference(case, 1, 0, replying), "tokens": case.rows}


def inference(case: Case, tokens: int, context: int, replying: int) -> float:
    """GiB of the plan."""
    params = case.params
    found = inference_memory(case.skeleton, params.quantization, tokens, context, replying, SLICE, CARD)
    return round(sum(found.values()) / GIB, 3)


def drift(case: Case, model, meter: counting.Meter) -> dict:
    """Logits of an adapter on the base, as merge compares them."""
    from aurora.lora.attach import attach
    from aurora.merge.drift import logits
    from aurora.sft.plan import targets_of

    params = case.params
    with torch.device("meta"):
        skeleton = transformers.MixtralForCausalLM(MixtralConfig(**SHAPE, num_hidden_layers=case.layers))
    samples = [([1, *range(3, case.length + 2)], list(range(case.length - 33, case.length - 1)))]
    targets = targets_of(skeleton, params.sft)
    with MODE, answers(meter):
        tuned = attach(model, targets).eval()
        with meter:
            meter.clear()
            (found,) = list(logits(tuned, samples, ""))
    return meter.result() | {
        "tokens": case.length,
        "shape": list(found.shape),
        "device": found.device.type,
        "dtype": str(found.dtype),
    }


def chat(case: Case, model, meter: counting.Meter) -> dict:
    """As `aurora chat` and `aurora serve` answer: a new token on `length` of them."""
    from aurora.serving.chat_model import Answer, ChatModel, Sampling

    speaker = ChatModel.__new__(ChatModel)
    speaker.model, speaker.context, speaker.ends, speaker._turn = (model, 32768, frozenset([2]), threading.Lock())
    speaker._decode = lambda tokens: "a" * len(tokens)
    counted = []
    with MODE, answers(meter), meter:
        for new in (2, 3):
            meter.clear()
            list(speaker.answer([1, *range(3, case.length + 2)], Sampling(max_tokens=new, temperature=0), Answer(0)))
            counted.append(meter.result())
    return less(*counted) | {"tokens": 1}


def less(one: dict, two: dict) -> dict:
    """What the second of two counts has more than the first; the peak of both."""
    numbers = {name: value for name, value in two.items() if isinstance(value, (int, float))}
    return {name: round(value - one[name], 6) for name, value in numbers.items()} | {"peak_gib": two["peak_gib"]}


RUNS = {"train": train, "questions": questions, "replies": replies, "drift": drift, "chat": chat}


def run(case: Case) -> dict:
    """What was counted; `tokens_per_second` is the roofline's."""
    model = mixtral(case.layers, case.params.quantization)
    meter = counting.Meter(getattr(counting, case.routing))
    meter.count(held(model))
    modelled = meter.now
    found = {"model_gib": round(modelled / GIB, 3)} | RUNS[case.what](case, model, meter)
    return found | {"tokens_per_second": round(found["tokens"] / found["roofline_ms"] * 1e3)}


if __name__ == "__main__":
    for text in sys.argv[1:]:
        print(json.dumps(run(Case(**json.loads(text)))), flush=True)
