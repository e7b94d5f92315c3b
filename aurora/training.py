"""The paper's QLoRA recipe: TRL's SFTTrainer on the quantised base, with nothing left to a silent default."""

import csv
import hashlib
import io
import json
import math
import shutil
from pathlib import Path

from aurora.adapter_card import adapter_card
from aurora.allocator import keep_heap
from aurora.errors import DataError, ModelError
from aurora.params import Quantization, Sft
from aurora.provenance import RECORD, training_record
from aurora.store import replacing, sha256_file, write_json, write_text

SCRATCH = Path(".aurora/sft")  # ignored by git and DVC; holds checkpoints of an unfinished run
CODE = ("training", "model", "experts", "nf4", "packing")  # modules that decide what a step computes
CURVE = ("step", "loss", "learning_rate", "grad_norm", "held_out_loss")


def train(base: Path, rows: Path, adapter: Path, sft: Sft, quantization: Quantization) -> tuple[dict, str]:
    """Trains a LoRA adapter on `rows`/train.parquet and writes it as a PEFT folder.

    Returns the metrics and the loss curve as CSV text. Checkpoints lie in a scratch folder that is named by a
    hash of everything the run depends on, so that an interrupted run goes on and no other run ever takes them;
    it is removed once the adapter is written. Raises ModelError or DataError for a base, rows or a target that
    cannot be trained, and for a loss that is not finite.
    """
    import torch
    from transformers import set_seed

    keep_heap()
    scratch = SCRATCH / fingerprint(base, rows, sft, quantization)
    torch.set_num_threads(sft.threads)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
    set_seed(sft.seed)
    trainer = build_trainer(base, rows, sft, quantization, scratch)
    trainer.train(resume_from_checkpoint=_last_checkpoint(scratch))
    metrics = summary(trainer)
    save_adapter(trainer.model, adapter, base, training_record(base, rows, sft, quantization))
    text = curve(trainer.state.log_history)
    shutil.rmtree(scratch, ignore_errors=True)
    return metrics, text


def fingerprint(base: Path, rows: Path, sft: Sft, quantization: Quantization) -> str:
    """First 16 hex digits of a hash of base manifest, rows, parameters, this package's code and versions."""
    from importlib.metadata import version

    code = sorted(Path(__file__).parent.glob("*.py"))
    parts = {
        "base": sha256_file(base / "manifest.json"),
        "train": sha256_file(rows / "train.parquet"),
        "held_out": sha256_file(rows / "held_out.parquet"),
        "sft": sft.model_dump_json(),
        "quantization": quantization.model_dump_json(),
        "code": [sha256_file(path) for path in code if path.stem in CODE],
        "versions": [version(name) for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def build_trainer(base: Path, rows: Path, sft: Sft, quantization: Quantization, scratch: Path):
    """An SFTTrainer over the rows of the format stage, its checkpoints below `scratch`."""
    import torch
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTConfig

    from aurora.inspection import training_step_bytes
    from aurora.model import load_model, load_tokenizer

    data = {name: _dataset(rows / f"{name}.parquet", scratch) for name in ("train", "held_out")}
    arguments = SFTConfig(
        output_dir=str(scratch / "checkpoints"),
        seed=sft.seed,
        data_seed=sft.seed,
        learning_rate=sft.learning_rate,
        num_train_epochs=sft.num_train_epochs,
        per_device_train_batch_size=sft.per_device_train_batch_size,
        per_device_eval_batch_size=sft.per_device_train_batch_size,
        gradient_accumulation_steps=sft.gradient_accumulation_steps,
        lr_scheduler_type=sft.lr_scheduler_type,
        warmup_steps=sft.warmup_steps,
        optim=sft.optim,
        weight_decay=sft.weight_decay,
        max_grad_norm=sft.max_grad_norm,
        bf16=sft.precision == "bf16",
        fp16=sft.precision == "fp16",
        gradient_checkpointing=sft.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if sft.gradient_checkpointing else None,
        router_aux_loss_coef=sft.router_aux_loss_coef,
        # The rows are cut by the format stage; TRL would cut them again, at 1,024, without a word.
        max_length=sft.packing_length if sft.packing else None,
        packing=sft.packing,
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": not sft.packing},
        logging_steps=sft.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=sft.eval_steps,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=sft.save_steps,
        save_total_limit=sft.save_total_limit,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    longest = sft.packing_length if sft.packing else max(len(ids) for ids in data["train"]["input_ids"])

    def work(skeleton) -> int:
        batch = sft.per_device_train_batch_size
        return training_step_bytes(skeleton, quantization, batch, longest, sft.gradient_checkpointing)

    trainer = _trainer_class()(
        model=load_model(base, quantization, work=work),
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["held_out"],
        processing_class=load_tokenizer(base),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=sft.lora.r,
            lora_alpha=sft.lora.lora_alpha,
            lora_dropout=sft.lora.lora_dropout,
            target_modules=list(sft.lora.target_modules),
        ),
    )
    # TRL casts the LoRA weights of a quantised model to bfloat16; the recipe, and an exact resume, need float32.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_progress(sft.stop_after_steps))
    return trainer


def _trainer_class() -> type:
    import torch
    from trl import SFTTrainer

    class LabelledPositionsTrainer(SFTTrainer):
        """SFTTrainer whose loss forms logits only where some row has a label.

        The value is TRL's: the sum of the labels' negative log-likelihoods over their number. TRL's own fused
        head computes entropy and accuracy too, in some twenty passes over the vocabulary that dominate on CPU.
        """

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            inputs = dict(inputs, use_cache=False)
            if self.aux_loss_enabled:
                inputs["output_router_logits"] = True
            targets = torch.nn.functional.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)
            places = (targets != -100).any(dim=0).nonzero().flatten()
            outputs = model(**inputs, logits_to_keep=places)
            targets = targets[:, places]
            keep = targets != -100
            total = torch.nn.functional.cross_entropy(
                outputs.logits[keep].float(), targets[keep], reduction="sum"
            )
            count = keep.sum() if num_items_in_batch is None else num_items_in_batch
            loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
            if self.aux_loss_enabled:
                loss = loss + self.router_aux_loss_coef * outputs.aux_loss
            if num_items_in_batch is not None and self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # DDP averages the gradients
            return (loss, outputs) if return_outputs else loss

    return LabelledPositionsTrainer


def _dataset(path: Path, scratch: Path):
    from datasets import disable_progress_bars, load_dataset

    if not path.is_file():
        raise DataError(f"{path}: not found; it is written by: dvc repro format")
    disable_progress_bars()
    data = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(scratch / "datasets")
    ).select_columns(["input_ids", "labels"])
    if len(data) == 0:
        raise DataError(
            f"{path}: no row to train on; see data/clean/metrics.json and data/format/metrics.json"
        )
    return data


def _progress(stop_after_steps: int | None):
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """A bar on stderr with the last losses; ends the run at its last step, or at a loss that is not finite."""

        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = tqdm(
                total=min(state.max_steps, stop_after_steps or state.max_steps),
                initial=state.global_step,
                desc="sft",
                unit="step",
            )

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(1)
            if state.global_step == stop_after_steps:
                control.should_training_stop = control.should_evaluate = True

        def on_log(self, args, state, control, logs, **kwargs):
            shown = {name: logs[name] for name in ("loss", "eval_loss") if name in logs}
            for name, value in shown.items():
                if not math.isfinite(value):
                    raise DataError(
                        f"sft: {name} is {value} at step {state.global_step}; lower sft.learning_rate in params.yaml"
                    )
            if hasattr(self, "bar") and shown:
                self.bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return Progress()


def _last_checkpoint(scratch: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    folder = scratch / "checkpoints"
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def save_adapter(model, folder: Path, base: Path, record: dict) -> None:
    """Writes the adapter as PEFT does, without what varies: set order, absolute paths, generated cards.

    `record`, what it was trained from, goes beside it, so that merge knows the base again, and into the card.
    """
    with replacing(folder) as partial:
        model.save_pretrained(partial)
        path = partial / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base.as_posix()
        config["target_modules"] = sorted(config["target_modules"])
        write_json(path, dict(sorted(config.items())))
        if not (partial / "adapter_model.safetensors").is_file():
            raise ModelError(f"{folder}: PEFT wrote no adapter_model.safetensors")
        write_json(partial / RECORD, record)
        write_text(partial / "README.md", adapter_card(base, partial))


def summary(trainer) -> dict:
    """What metrics/sft.json holds: counts, losses; nothing that depends on time or machine."""
    history = trainer.state.log_history
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "rows": len(trainer.train_dataset),
        "trainable_parameters": trainable,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "held_out_loss_first": held_out[0],
        "held_out_loss_last": held_out[-1],
    }


def curve(history: list[dict]) -> str:
    """The loss curve as CSV, one line a logged step; empty cells where a value was not measured there."""
    points: dict[int, dict] = {}
    for entry in history:
        point = points.setdefault(entry["step"], {"step": entry["step"]})
        for name in CURVE[1:]:
            value = entry.get("eval_loss" if name == "held_out_loss" else name)
            if value is not None:
                point[name] = f"{value:.6g}"
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points[step] for step in sorted(points))
    return text.getvalue()


def write_outcome(folder: Path, metrics: dict, curve_text: str) -> None:
    """Writes metrics.json and curve.csv into a new folder."""
    with replacing(folder) as partial:
        partial.mkdir()
        write_json(partial / "metrics.json", metrics)
        write_text(partial / "curve.csv", curve_text)
