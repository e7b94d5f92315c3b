"""TRL's SFTTrainer with a known order of rows, an exact loss, and checkpoints that are whole or absent."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import Sampler
from transformers import Trainer
from trl import SFTTrainer

from aurora.core.errors import DataError, ResourceError
from aurora.core.files import remove
from aurora.core.parquet import read_parquet
from aurora.sft.checkpoints import Checkpoints

SCALER_HALVINGS = 16  # of torch's GradScaler, from 65,536: an overflow at a factor of 1 is not the scaler's


class EpochOrder(Sampler):
    """Rows of an epoch in an order that seed and epoch alone decide, so that a resumed run sees the same.

    Blank rows, which fill the last step of many processes and have no label, come last.
    """

    def __init__(self, rows: int, blanks: int, seed: int) -> None:
        self.rows, self.blanks, self.seed, self.epoch = rows, blanks, seed, 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()
        yield from range(self.rows, self.rows + self.blanks)

    def __len__(self) -> int:
        return self.rows + self.blanks


class LabelledPositionsTrainer(SFTTrainer):
    """SFTTrainer whose loss forms logits at the labelled places alone.

    The value is TRL's: the sum of the labels' negative log-likelihoods over their number, in the whole optimiser
    step and all processes. TRL's own fused head computes entropy and accuracy too, in some twenty passes over the
    vocabulary that dominate on CPU. The held-out loss is per token, whatever the batches and processes.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the labels of all accumulated batches

    def __init__(self, *args: Any, checkpoints: Checkpoints, rows_file: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # whatever the model says: the labels are to be counted
        self.checkpoints, self.rows_file = checkpoints, rows_file
        self.rows = len(self.train_dataset)
        world = self.accelerator.num_processes
        blanks = -self.rows % (self.args.per_device_train_batch_size * world) if world > 1 else 0
        if blanks:
            self.train_dataset = concatenate_datasets([self.train_dataset, self._blank_rows(blanks)])
        self.order = EpochOrder(self.rows, blanks, self.args.data_seed)
        self._overflows = 0  # steps in a row whose gradient was not finite
        self._seen: list[torch.Tensor] = []  # input_ids of the batches of the optimiser step under way
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._clock = time.perf_counter()
        self.tokens, self.padding, self.seconds = 0, 0, 0.0  # of this process's training, evaluation apart

    def _blank_rows(self, count: int) -> Dataset:
        columns: dict[str, list] = {"input_ids": [self._tokenizer.pad_token_id], "labels": [-100], "seq_lengths": [1]}
        names = self.train_dataset.column_names
        return Dataset.from_dict(
            {name: [columns[name]] * count for name in names}, features=self.train_dataset.features
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochOrder:
        return self.order

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # accelerate does not reach the sampler of a loader that skips batches on several processes.
        self.order.epoch = kwargs["epoch"]
        self._clock = time.perf_counter()
        super()._run_epoch(*args, **kwargs)

    def likelihood(self, model: torch.nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Sum of the labels' negative log-likelihoods in nats, their number, and the outputs of the model."""
        inputs = dict(inputs, use_cache=False)
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        targets = pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100).flatten()
        labelled = targets != -100
        kept = labelled.nonzero().flatten()
        # A place that one row labels is padding or prompt in another: logits_to_keep would form both.
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        selecting = head.register_forward_pre_hook(lambda module, args: (args[0].flatten(0, 1)[kept][None],))
        try:
            outputs = model(**inputs)
        finally:
            selecting.remove()
        total = cross_entropy(outputs.logits[0].float(), targets[kept], reduction="sum")
        return total, labelled.sum(), outputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The batch's share of the step's loss; raises DataError, with the ids of its rows, if it is not finite."""
        self._seen.append(inputs["input_ids"])
        mask = inputs.get("attention_mask")
        self._tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        self.padding += 0 if mask is None else mask.numel()
        total, count, outputs = self.likelihood(model, inputs)
        if not torch.isfinite(total):
            raise self._not_finite("loss", total / count, self._seen[-1:])
        # DDP averages the gradients of its processes, and the number of labels is that of all of them.
        loss = total / (count if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            share = self.router_aux_loss_coef / self.current_gradient_accumulation_steps
            loss = loss + share * outputs.aux_loss
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        self._overflows = 0 if torch.isfinite(norm) else self._overflows + 1
        # In fp16 the scaler skips such a step and halves its factor, so that the next one may be finite.
        if self._overflows > (SCALER_HALVINGS if self.args.fp16 else 0):
            raise self._not_finite("gradient norm", norm, self._seen)
        self._seen.clear()
        return norm

    def _not_finite(self, what: str, value: torch.Tensor, batches: list[torch.Tensor]) -> DataError:
        ids = row_ids(self.rows_file, batches, self._tokenizer.pad_token_id)
        last = self.checkpoints.last()
        return DataError(
            f"sft: {what} is {float(value.detach())} at step {self.state.global_step + 1}, rows {', '.join(ids)}; last good"
            f" checkpoint: {last or 'none'}; look at these rows, or lower sft.learning_rate in params.yaml"
        )

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Mean negative log-likelihood in nats a label over all held-out rows, `eval_loss`."""
        started = time.perf_counter()
        rows, size = self.eval_dataset, self.args.per_device_eval_batch_size
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))  # little padding
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        for start in list(range(0, len(order), size))[self.args.process_index :: self.args.world_size]:
            examples = [
                {name: rows[number][name] for name in ("input_ids", "labels")} for number in order[start : start + size]
            ]
            inputs = self._prepare_inputs(self.data_collator(examples))
            with torch.no_grad(), self.compute_loss_context_manager():
                total, count, _ = self.likelihood(self.model, inputs)
            sums += torch.stack([total.double(), count.double()]).cpu()
        total, count = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._clock += time.perf_counter() - started
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the tokens a second of all processes, padding not counted, since the point before."""
        if "loss" in logs:
            seconds = time.perf_counter() - self._clock
            tokens = int(self.accelerator.reduce(self._tokens.clone(), "sum"))
            logs["tokens_per_second"] = tokens / seconds
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
            self._tokens.zero_()
            self._clock = time.perf_counter()
        Trainer.log(self, logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.model.save_pretrained(output_dir)  # the adapter alone: Trainer would add tokeniser and arguments

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.staging)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Writes the checkpoint aside and publishes it whole; raises ResourceError if the disk does not take it."""
        started, step = time.perf_counter(), self.state.global_step
        for name, weight in self.model.named_parameters():
            if weight.requires_grad and not torch.isfinite(weight).all():
                raise DataError(
                    f"sft: {name} is not finite after step {step}; last good checkpoint: {self.checkpoints.last()};"
                    " lower sft.learning_rate in params.yaml"
                )
        try:
            Trainer._save_checkpoint(self, model, trial)  # TRL's would add a model card
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.checkpoints.publish(step)
        except (OSError, RuntimeError, SafetensorError) as error:
            remove(self.checkpoints.staging)
            free = shutil.disk_usage(self.checkpoints.folder).free
            raise ResourceError(
                f"sft: the checkpoint of step {step} could not be written to {self.checkpoints.folder}"
                f" ({str(error).partition(chr(10))[0][:120]}; {free:,} bytes free); it is removed, and the last good one"
                f" is {self.checkpoints.last() or 'none'}: free some space and run dvc repro"
            ) from None
        self.accelerator.wait_for_everyone()
        self._clock += time.perf_counter() - started

    def restore(self, checkpoint: Path) -> None:
        """Takes weights and state from the checkpoint of a run that had come to its end."""
        from transformers import TrainerState

        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def row_ids(file: Path, batches: list[torch.Tensor], padding: int) -> list[str]:
    """Ids of the rows of `file` that are in these batches (B, T), padded or packed, sorted."""
    rows = read_parquet(file, "format", ["id", "input_ids"]).to_pylist()
    ids: dict[str, list[str]] = {}
    for row in rows:
        ids.setdefault(_text(row["input_ids"], padding), []).append(row["id"])
    lines = [_text(line, padding) for batch in batches for line in batch.tolist()]
    found = {name for line in lines for name in ids.get(line, ())}
    if not found:  # packed
        found = {name for text, names in ids.items() for name in names if any(text in line for line in lines)}
    return sorted(found) or ["unknown"]


def _text(tokens: list[int], padding: int) -> str:
    # Rows may end in the padding token themselves.
    end = len(tokens)
    while end and tokens[end - 1] == padding:
        end -= 1
    return f" {' '.join(map(str, tokens[:end]))} "
