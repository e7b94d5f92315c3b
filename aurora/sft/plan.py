"""What a training will take: steps, tokens, memory and disk, by arithmetic on shapes, before the hours are spent."""

import json
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from aurora.core.errors import DataError, ModelError, ParamsError, ResourceError
from aurora.core.files import write_json
from aurora.core.manifests import manifest_hash
from aurora.core.parquet import open_parquet
from aurora.lora.targets import Targets, find_targets
from aurora.model.folder import is_recurrent, meta_model, require_packable
from aurora.model.machine import GIB, Machine, card_memory, default_device, machine
from aurora.model.packed_cache import place_of
from aurora.model.quantization import Quantization
from aurora.model.sizes import held_bytes, largest_arrival
from aurora.sft.footprint import training_memory
from aurora.sft.params import Sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPEED = Path(".aurora/speed.json")  # of the last training here; untracked
REMEDY = {
    "training": "lower sft.per_device_train_batch_size, set sft.gradient_checkpointing: true or quantization.bits: 4,"
    " or take a larger card",
    "inference": "lower eval.batch_tokens, set quantization.bits: 4, or take a larger card",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """What has to be trained on, once over."""

    rows: int
    tokens: int
    longest: int  # tokens of the longest row
    most_trained: int  # labels of the row that has most
    source: str  # where the numbers are from
    largest_id: int = 0  # token id; 0 where the rows are not there yet
    packed: int | None = None  # rows that TRL packs them into, where that was counted


@dataclass(frozen=True, slots=True)
class Plan:
    """Figures of a training; bytes are of one process unless said otherwise."""

    rows: Rows
    steps: int
    epoch_steps: int
    effective_batch: int
    tokens: int  # in all steps
    batch_tokens: int  # of a micro-batch, at most
    parameters: int
    trainable: int
    loading: int  # bytes at the peak, before anything is computed
    training: dict[str, int]  # part -> bytes at the peak
    inference: dict[str, int]  # empty where only the training is planned
    disk: dict[str, int]  # what is still to be written -> bytes
    processes: int
    several_machines: bool

    @property
    def training_bytes(self) -> int:
        """Predicted peak of sft, in one process."""
        return max(self.loading, sum(self.training.values()))

    @property
    def inference_bytes(self) -> int:
        """Predicted peak of eval."""
        return max(self.loading, sum(self.inference.values()))


def plan(sft: Sft, quantization: Quantization, base: Path, rows: Rows) -> Plan:
    """The plan of a training alone, for a base on the disk. Raises ModelError if it does not serve."""
    skeleton = meta_model(base)
    check_model(base, skeleton, sft, quantization)
    targets_of(skeleton, sft)  # a target that matches nothing comes before a shard that is missing
    arrival = largest_arrival(base, skeleton, quantization)
    disk, card = disk_left(base, skeleton, quantization), card_memory(default_device())
    return training_plan(sft, quantization, skeleton, arrival, rows, disk, card)


def training_plan(
    sft: Sft,
    quantization: Quantization,
    skeleton: "PreTrainedModel",
    arrival: int,
    rows: Rows,
    disk: dict[str, int],
    card: int | None,
) -> Plan:
    """As `plan_of`, without inference: all that the sft stage, which reads no parameter of eval, can know."""
    batch = sft.per_device_train_batch_size * sft.gradient_accumulation_steps * sft.processes
    count, length = rows.rows, rows.longest
    if sft.packing:  # best-fit decreasing fills rows to some 99 %
        count, length = rows.packed or ceil(rows.tokens / sft.packing_length), sft.packing_length
    batches = ceil(count / (sft.per_device_train_batch_size * sft.processes))
    epoch_steps = ceil(batches / sft.gradient_accumulation_steps)
    whole = ceil(sft.num_train_epochs * epoch_steps)
    steps = min(whole, sft.stop_after_steps or whole)
    trainable = targets_of(skeleton, sft).trainable
    return Plan(
        rows=rows,
        steps=steps,
        epoch_steps=epoch_steps,
        effective_batch=batch,
        tokens=round(rows.tokens * steps / epoch_steps),
        batch_tokens=sft.per_device_train_batch_size * length,
        parameters=sum(tensor.numel() for tensor in skeleton.parameters()),
        trainable=trainable,
        loading=held_bytes(skeleton, quantization) + arrival,
        training=training_memory(skeleton, quantization, sft, trainable, length, rows.most_trained, card),
        inference={},
        disk=disk | {"adapter and checkpoints": (sft.save_total_limit + 1) * 12 * trainable + 4 * trainable},
        processes=sft.processes,
        several_machines=sft.accelerate_config is not None,
    )


def measure_rows(path: Path) -> Rows:
    """Counts of a training file of the format stage; raises DataError if it is missing, damaged or empty."""
    import pyarrow

    rows = tokens = longest = most = largest_id = 0
    try:
        with open_parquet(path) as file:
            for name in ("input_ids", "labels"):
                kind = file.schema_arrow.field(name).type
                if kind != pyarrow.list_(pyarrow.int32()):
                    raise DataError(
                        f"{path}: column {name} is {kind}, not a list of int32; write it again by: dvc repro -f format"
                    )
            for batch in file.iter_batches(8192, columns=["input_ids", "labels"]):
                lengths = numpy.asarray(batch["input_ids"].value_lengths())
                trained = numpy.asarray(batch["labels"].flatten()) != -100
                starts = numpy.cumsum(lengths) - lengths
                rows, tokens = rows + len(lengths), tokens + int(lengths.sum())
                longest = max(longest, int(lengths.max(initial=0)))
                largest_id = max(largest_id, int(numpy.asarray(batch["input_ids"].flatten()).max(initial=0)))
                most = max(most, int(numpy.add.reduceat(trained, starts).max(initial=0)))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; it is written by: dvc repro format") from None
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: not Parquet of rows ({error}); write it again by: dvc repro -f format") from None
    if not rows:
        raise DataError(f"{path}: no row to train on; see data/clean/metrics.json and data/format/metrics.json")
    return Rows(rows, tokens, longest, most, path.as_posix(), largest_id)


def targets_of(skeleton: "PreTrainedModel", sft: Sft) -> Targets:
    """What gets an adapter. Raises ModelError for a target that matches nothing, or that merge could not put back."""
    lora = sft.lora
    if lora.modules_to_save and getattr(skeleton, "all_tied_weights_keys", None):
        raise ModelError(
            f"params.yaml: sft.lora.modules_to_save: embeddings and head of this {skeleton.config.model_type} share their"
            " weights, which a merge would part; leave it out"
        )
    return find_targets(skeleton, lora.config(), "params.yaml: sft.lora")


def check_model(base: Path, skeleton: "PreTrainedModel", sft: Sft, quantization: Quantization) -> None:
    """Raises ModelError or ParamsError for what this kind of base cannot do, before a weight of it is read."""
    from inspect import signature

    kind = skeleton.config.model_type
    if quantization.bits == 4:
        require_packable(base, skeleton)
    if sft.router_aux_loss_coef and "output_router_logits" not in signature(skeleton.forward).parameters:
        raise ParamsError(
            f"params.yaml: sft.router_aux_loss_coef is {sft.router_aux_loss_coef}, but a {kind} gives no load-balancing"
            " loss; set 0.0"
        )
    if sft.packing and is_recurrent(skeleton.config):
        raise ParamsError(
            f"params.yaml: sft.packing: the recurrent layers of a {kind} would carry one row into the next; set false"
        )


def disk_left(base: Path, skeleton: "PreTrainedModel", quantization: Quantization) -> dict[str, int]:
    """Bytes that are still to be written beside the adapter once base and rows are there."""
    place = place_of(base, quantization, default_device())
    kept = place is not None and not place.is_dir()
    return {
        "packed base": held_bytes(skeleton, quantization) if kept else 0,
        "merged model": sum(path.stat().st_size for path in base.rglob("*.safetensors")),
    }


def check(plan: Plan, card: int | None = None) -> None:
    """Raises ResourceError, with the sum, where memory or disk do not suffice for the plan.

    `card` is the memory in bytes of another machine's card; without it this machine is meant.
    """
    found = machine()
    if card is not None:
        found = Machine("the card", plan.processes, card)
    elif found.cards and plan.processes > found.cards and not plan.several_machines:
        raise ResourceError(
            f"plan: sft.processes is {plan.processes}, and there are {found.cards} cards here; lower it, or name the"
            " machines by sft.accelerate_config"
        )
    together = 1 if found.cards else plan.processes  # a card is one process's own
    for what, size in (("training", together * plan.training_bytes), ("inference", plan.inference_bytes)):
        if size > found.memory:
            raise ResourceError(
                f"plan: {what} takes about {size / GIB:.2f} GiB, and {found.name} has {found.memory / GIB:.2f} GiB"
                f" free; {REMEDY[what]}"
            )
    free = shutil.disk_usage(Path()).free
    if (written := sum(plan.disk.values())) > free:
        raise ResourceError(
            f"plan: {written / GIB:.2f} GiB are still to be written, and the disk has {free / GIB:.2f} GiB free; free"
            " some, or take a larger disk"
        )


def write_speed(base: Path, tokens_per_second: float, processes: int) -> None:
    """Remembers, untracked, how fast a training was, for the next plan."""
    write_json(
        SPEED,
        {
            "base": manifest_hash(base),
            "device": machine().name,
            "processes": processes,
            "tokens_per_second": tokens_per_second,
        },
    )


def read_speed(base: Path, processes: int) -> float | None:
    """Tokens a second of the last training here, if it was of this base on this device."""
    try:
        found = json.loads(SPEED.read_text(encoding="utf-8"))
        known = manifest_hash(base)
        same = known is not None and found["base"] == known and found["device"] == machine().name
        return found["tokens_per_second"] if same and found["processes"] == processes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
