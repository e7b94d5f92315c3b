"""The paper's QLoRA recipe: TRL's SFTTrainer on the quantised base, with nothing left to a silent default."""

import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from aurora.adapter.config import CONFIG, read_adapter_config
from aurora.adapter.record import RECORD, hub_address
from aurora.core.errors import DataError, ModelError, ParamsError
from aurora.core.files import flush_folder, remove, replacing, write_json, write_text
from aurora.core.parquet import open_parquet
from aurora.core.recorded import keep_until_recorded, require_cache
from aurora.model.allocator import keep_heap
from aurora.model.folder import TOKENIZER_FILES, meta_model, read_config, verify
from aurora.model.machine import kernels, machine
from aurora.model.quantization import Quantization
from aurora.sft.checkpoints import WEIGHTS, Checkpoints, fingerprint, layouts_behind, read_layouts
from aurora.sft.params import Sft
from aurora.sft.plan import check, measure_rows, plan, targets_of, write_speed
from aurora.sft.record import training_record
from aurora.sft.requirements import check_surroundings
from aurora.sft.start import check_start, start_folder

KEPT = "checkpoints.json"  # {"steps": […]}; so that the folder is never empty, which DVC would not bring back
SCHEDULES = {"constant": "constant_with_warmup"}  # transformers' `constant` drops the warm-up
SCRATCH = Path(".aurora/sft")  # ignored by git and DVC; survives a failed stage


def train(
    base: Path, rows: Path, adapter: Path, out: Path, sft: Sft, quantization: Quantization, kept: Path | None = None
) -> str:
    """Trains a LoRA adapter on `rows`/train.parquet; writes it as a PEFT folder, metrics and loss curve to `out`.

    The adapters of the steps sft.keep_checkpoints go to `kept`/step-N.

    Returns a closing line. Checkpoints lie in a scratch folder that is named by a hash of everything the run
    depends on, so that an interrupted run goes on, to the same bytes, and no other run ever takes them; the last one
    stays until dvc.lock names the outputs. Raises AuroraError for a base, rows, target or machine with which it cannot be
    done, and for a loss that is not finite.
    """
    import torch
    from transformers import set_seed

    keep_heap()
    torch.set_num_threads(sft.threads)
    be_deterministic()
    scratch = SCRATCH / fingerprint(base, rows, sft, quantization, kernels())
    checkpoints = Checkpoints(scratch / "checkpoints", sft.save_total_limit, sft.keep_checkpoints)
    trainer = build_trainer(base, rows, sft, quantization, scratch, checkpoints)
    main = trainer.args.process_index == 0
    if main:
        checkpoints.take_last_whole()
        for left in adapter.parent.glob(f".{adapter.name}.*.partial"):
            remove(left)  # of a run that was killed as it wrote
    trainer.accelerator.wait_for_everyone()
    last = checkpoints.last()
    if last and checkpoints.steps()[-1] >= last_step(trainer, sft):
        checkpoints.layouts = read_layouts(last)
        trainer.restore(last)
    else:
        checkpoints.layouts = layouts_behind(last, sft)
        if last and main:
            changed = len(checkpoints.layouts) > len(read_layouts(last))
            told = (
                f", in {sft.processes} processes instead of {checkpoints.layouts[-2]['processes']}" if changed else ""
            )
            print(f"sft: going on from {last}{told}", file=sys.stderr)
        trainer.args.eval_on_start = last is None
        set_seed(sft.seed + trainer.args.process_index)  # dropout differs from process to process
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except RuntimeError as error:
            if "does not have a deterministic implementation" not in str(error):
                raise
            raise ModelError(
                f"sft: {str(error).partition(' does not')[0]} has no deterministic kernel on {machine().name}, so equal runs"
                " would give other bytes; take another base, or train it elsewhere"
            ) from None
        finally:
            trainer.progress.close()  # so that an error gets a line of its own
    if not main:
        return ""
    from aurora.sft.curves import curve

    metrics = summary(trainer)
    record = training_record(base, rows, sft, quantization)
    if len(checkpoints.layouts) > 1:
        record["layouts"] = checkpoints.layouts
    save_adapter(trainer, adapter, base, record)
    if kept is not None:
        save_kept(trainer, checkpoints.kept, kept, sft.keep_checkpoints, base, record)
    write_outcome(out, metrics, curve(trainer.state.log_history))
    for folder in (adapter, out, *([kept] if kept is not None else [])):  # on the disk before the last checkpoint goes
        flush_folder(folder)
    remove(scratch / "datasets")
    checkpoints.prune(1)
    keep_until_recorded(scratch, (adapter, out))
    line = (
        f"sft: {metrics['steps']} steps, held-out loss {metrics['held_out_loss_first']:.3f}"
        f" -> {metrics['held_out_loss_last']:.3f}"
    )
    if not trainer.seconds:
        return line
    speed, peak = trainer.tokens / trainer.seconds, machine().peak_bytes()
    write_speed(base, speed, sft.processes)
    return f"{line}; {speed:,.0f} tokens/s, peak {peak / 2**30:.2f} GiB"


def be_deterministic() -> None:
    """Makes equal runs on one machine give equal bytes; torch raises RuntimeError where a card has no such kernel."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    # With warn_only attention on a card would keep to its backward pass in no fixed order.
    torch.use_deterministic_algorithms(True)
    # An aid in the search for reads of memory that was never written, which costs a write of every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False


def last_step(trainer, sft: Sft) -> int:
    """Optimiser steps of the whole run."""
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    return min(steps, sft.stop_after_steps or steps)


def build_trainer(
    base: Path, rows: Path, sft: Sft, quantization: Quantization, scratch: Path, checkpoints: Checkpoints
):
    """A LabelledPositionsTrainer over the rows of the format stage."""
    import torch
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTConfig

    from aurora.lora.attach import attach, load_weights
    from aurora.model.loading import load_model, load_tokenizer
    from aurora.sft.curves import Live, Progress
    from aurora.sft.packed_attention import attend_within_documents
    from aurora.sft.trainer import LabelledPositionsTrainer

    data = {name: load_rows(rows / f"{name}.parquet", scratch) for name in ("train", "held_out")}
    arguments = SFTConfig(
        output_dir=str(scratch / "checkpoints"),
        seed=sft.seed,
        data_seed=sft.seed,
        learning_rate=sft.learning_rate,
        num_train_epochs=sft.num_train_epochs,
        per_device_train_batch_size=sft.per_device_train_batch_size,
        per_device_eval_batch_size=sft.per_device_train_batch_size,
        gradient_accumulation_steps=sft.gradient_accumulation_steps,
        average_tokens_across_devices=True,
        lr_scheduler_type=SCHEDULES.get(sft.lr_scheduler_type, sft.lr_scheduler_type),
        warmup_steps=sft.warmup_steps,
        optim=sft.optim,
        weight_decay=sft.weight_decay,
        max_grad_norm=sft.max_grad_norm,
        bf16=sft.precision == "bf16",
        fp16=sft.precision == "fp16",
        gradient_checkpointing=sft.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if sft.gradient_checkpointing else None,
        router_aux_loss_coef=sft.router_aux_loss_coef,
        loss_type="nll",
        # The rows are cut by the format stage; TRL would cut them again, at 1,024, without a word.
        max_length=sft.packing_length if sft.packing else None,
        packing=sft.packing,
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": not sft.packing},
        dataloader_drop_last=False,
        logging_steps=sft.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=sft.eval_steps,
        save_strategy="steps",
        save_steps=sft.save_steps,
        save_total_limit=sft.save_total_limit,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # else Trainer would spread one process over all cards it sees
    model = load_model(base, quantization)
    targets = targets_of(meta_model(base), sft)
    set_seed(sft.seed)  # of the adapter's first weights
    model = attach(model, targets)
    if sft.start_from:
        load_weights(model, targets, start_folder(sft.start_from))
    if sft.packing:
        attend_within_documents(model)
    weights = {parameter: parameter.data.float() for parameter in model.parameters() if parameter.requires_grad}
    trainer = LabelledPositionsTrainer(
        model=model,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["held_out"],
        processing_class=load_tokenizer(base),
        checkpoints=checkpoints,
        rows_file=rows / "train.parquet",
    )
    # TRL has cast the LoRA weights of a quantised model to bfloat16; the recipe, and an exact resume, need float32.
    for parameter, weight in weights.items():
        parameter.data = weight
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.targets = targets
    trainer.progress = Progress(sft.stop_after_steps)
    trainer.add_callback(trainer.progress)
    trainer.add_callback(Live())
    return trainer


def load_rows(path: Path, scratch: Path):
    """The tokens and labels of a file of the format stage, mapped into memory."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    data = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(scratch / "datasets"))
    return data.select_columns(["input_ids", "labels"])


def check_before(base: Path, rows: Path, sft: Sft, quantization: Quantization, memory: bool = True) -> None:
    """Raises AuroraError, before anything is loaded, for a machine or inputs on which the run would fail later.

    Without `memory` nothing is asked of a card that would make it hold memory for this process.
    """
    check_surroundings(sft)
    measured = {name: measure_rows(rows / f"{name}.parquet") for name in ("train", "held_out")}
    for found in measured.values():
        if not found.most_trained:
            raise DataError(
                f"{found.source}: no row has a trained token, so there is no loss; see data/format/metrics.json"
            )
    for found in measured.values():
        if sft.packing and found.longest > sft.packing_length:
            raise ParamsError(
                f"params.yaml: sft.packing_length is {sft.packing_length}, but the longest row of {found.source} has"
                f" {found.longest} tokens and would be cut; raise it, or lower format.max_length"
            )
    planned = plan(sft, quantization, base, measured["train"])
    if late := [step for step in sft.keep_checkpoints if step > planned.steps]:
        raise ParamsError(
            f"params.yaml: sft.keep_checkpoints has {late[0]}, but the training ends at step {planned.steps}; take it out"
        )
    require_cache(4 * planned.trainable)
    skeleton = meta_model(base)
    check_targets(base, skeleton, sft)
    if sft.start_from:
        check_start(sft, base)
    config = skeleton.config.get_text_config()
    check_ends(rows / "train.parquet", config.bos_token_id, config.eos_token_id)
    vocabulary = config.vocab_size
    for found in measured.values():
        if found.largest_id >= vocabulary:
            raise DataError(
                f"{found.source}: token {found.largest_id} stands in a row, but the base knows {vocabulary}: tokeniser and"
                f" weights of {base} are not of one model; fetch them from one, or enlarge its embeddings"
            )
    if memory:
        check(planned)


def check_ends(path: Path, begin: int | None, ends: int | list[int] | None) -> None:
    """Raises DataError for a row that begins with two begin tokens, and for rows whose end tokens are all untrained.

    A base whose template ends its answers otherwise has no end token in its rows, or only at their beginning.
    """
    import numpy

    seen = trained = 0
    with open_parquet(path) as file:
        for batch in file.iter_batches(8192, columns=["input_ids", "labels"]):
            lengths = numpy.asarray(batch["input_ids"].value_lengths())
            firsts = (numpy.cumsum(lengths) - lengths)[lengths > 1]
            ids, labels = (numpy.asarray(batch[name].flatten()) for name in ("input_ids", "labels"))
            if begin is not None and ((ids[firsts] == begin) & (ids[firsts + 1] == begin)).any():
                raise DataError(
                    f"{path}: a row begins with two begin tokens ({begin}); the template writes its own: write the rows"
                    " again by: dvc repro -f format"
                )
            if ends is not None:
                is_end = numpy.isin(ids, ends)
                is_end[firsts] = False
                seen, trained = seen + is_end.sum(), trained + (is_end & (labels != -100)).sum()
    if seen and not trained:
        raise DataError(
            f"{path}: none of its {seen} end tokens is trained, so the tune would not learn where to stop; write the rows"
            " again by: dvc repro -f format"
        )


def check_targets(base: Path, skeleton, sft: Sft) -> None:
    """Raises ModelError for a target whose form on the disk is one to which merge could add nothing."""
    if read_config(base).get("quantization_config"):
        return
    pieces = verify(base, skeleton, packing=False)
    for target in targets_of(skeleton, sft).found:
        name = target.name if target.is_parameter else f"{target.name}.weight"
        if not pieces.get(name):
            raise ModelError(
                f"{base}: {target.name} is made of other tensors on the disk while it loads, so that merge could not put"
                " its adapter back; leave it out of sft.lora"
            )


def save_adapter(trainer, folder: Path, base: Path, record: dict) -> None:
    """Writes the adapter as PEFT does, without what varies: set order, absolute paths, generated cards.

    Experts stand in it as PEFT's target_parameters of a dense model. The tokeniser lies beside it, and `record`, what
    it was trained from, so that merge knows the base again. A base from the hub is named as PEFT can find it.
    """
    with replacing(folder) as partial:
        trainer.model.save_pretrained(partial)
        _finish_adapter(partial, trainer, base, record)


def _finish_adapter(folder: Path, trainer, base: Path, record: dict) -> None:
    from safetensors.torch import load_file, save_file

    from aurora.lora.attach import is_packed, renamed

    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{folder}: PEFT wrote no {WEIGHTS}")
    config = read_adapter_config(folder)
    if is_packed(trainer.model):
        tensors = renamed(load_file(weights), trainer.targets, to_disk=True)
        save_file(dict(sorted(tensors.items())), weights, metadata={"format": "pt"})
    for name in ("target_modules", "target_parameters", "rank_pattern", "alpha_pattern"):
        value = getattr(trainer.targets.config, name)
        config[name] = sorted(value) if isinstance(value, (set, list)) else value
    name, revision = hub_address(base) or (base.as_posix(), None)
    config |= {"base_model_name_or_path": name, "revision": revision}
    write_json(folder / CONFIG, dict(sorted(config.items())))
    write_json(folder / RECORD, record)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's; the report writes the card


def save_kept(trainer, kept: Path, folder: Path, steps: Collection[int], base: Path, record: dict) -> None:
    """Writes the adapters of `steps` as `save_adapter` does, each to `folder`/step-N, and their list beside them.

    `kept` holds them as they were saved. Raises ModelError for a step whose checkpoint was not written.
    """
    with replacing(folder) as partial:
        partial.mkdir()
        for step in sorted(set(steps)):
            if not (kept / f"step-{step}").is_dir():
                raise ModelError(f"{folder}: no checkpoint of step {step} was written; run dvc repro -f sft")
            shutil.copytree(kept / f"step-{step}", partial / f"step-{step}")
            _finish_adapter(partial / f"step-{step}", trainer, base, record)
        write_json(partial / KEPT, {"steps": sorted(set(steps))})


def summary(trainer) -> dict:
    """What metrics/sft.json holds: counts, losses; nothing that depends on time or machine."""
    history = trainer.state.log_history
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "rows": trainer.rows,
        "trainable_parameters": trainable,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "held_out_loss_first": held_out[0],
        "held_out_loss_last": held_out[-1],
    }


def write_outcome(folder: Path, metrics: dict, curve_text: str) -> None:
    """Writes metrics.json and curve.csv into a new folder."""
    with replacing(folder) as partial:
        partial.mkdir()
        write_json(partial / "metrics.json", metrics)
        write_text(partial / "curve.csv", curve_text)
