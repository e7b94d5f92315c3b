"""How fast a training could be on a card, by arithmetic: its operations and its bytes at the rates of a data sheet."""

from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.yaml_files import read_yaml
from aurora.model.machine import GIB
from aurora.model.quantization import Quantization
from aurora.sft.footprint import Shape, training_memory
from aurora.sft.params import Sft
from aurora.sft.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARDS = read_yaml(Path(__file__).with_name("cards.yaml"))
REACHED = (0.76, 0.9)  # of a data sheet's operations and bytes, what large products and copies reach


def training_limits(
    plan: Plan, skeleton: "PreTrainedModel", sft: Sft, quantization: Quantization
) -> dict[str, dict[str, float | bool]]:
    """For each named card: GiB at the peak, whether that fits, tokens a second at most, hours at least."""
    found = {}
    for name, card in CARDS.items():
        memory = int(card["memory_gb"] * 1e9)
        length = plan.batch_tokens // sft.per_device_train_batch_size
        sizes = (sft, plan.trainable, length, plan.rows.most_trained, memory)
        needed = sum(training_memory(skeleton, quantization, *sizes).values())
        speed = tokens_per_second(Shape(skeleton, quantization, memory), sft, plan.batch_tokens, card)
        found[name] = {
            "gib": needed / GIB,
            "fits": max(needed, plan.loading) <= memory,
            "tokens_per_second": speed,
            "hours": plan.tokens / (speed * plan.processes) / 3600,
        }
    return found


def tokens_per_second(shape: Shape, sft: Sft, tokens: int, card: dict[str, float]) -> float:
    """The limit for micro-batches of `tokens`: time for operations, and for bytes that no operation hides."""
    operations, traffic = micro_batch(shape, sft, tokens)
    reached = card["bfloat16"] * 1e12 * REACHED[0], card["bandwidth"] * 1e9 * REACHED[1]
    return tokens / (operations / reached[0] + traffic / reached[1])


def micro_batch(shape: Shape, sft: Sft, tokens: int) -> tuple[float, float]:
    """Operations of a forward and backward pass, and the bytes that it moves beside its matrix products.

    Attention itself is left out, which weighs little in packed rows of documents of a thousand tokens.
    """
    recomputed = 1 if sft.gradient_checkpointing else 0
    matrix = shape.inner * shape.hidden  # of up, gate and down each
    attention = shape.hidden * (2 * shape.queries + 2 * shape.keys)
    # The experts' own backward pass computes gate and up again, and never down.
    products = shape.experts_each * matrix * (3 + 5) + attention * (2 + recomputed)
    operations = 2 * tokens * (shape.layers * products + 2 * shape.hidden * shape.vocabulary)
    # Experts are dequantised in forward and in backward: 4 bits and their scales are read, 16 are written.
    weights = shape.experts * 3 * matrix * 2 + attention * (2 + recomputed)
    dense = shape.layers * weights * (shape.width + 0.8) if shape.packed else 0
    # Beside the products each layer reads and writes its rows a number of times: counted on tests/stand_ins/fake_cuda.
    streams = shape.experts_each * (30 * shape.inner + 24 * shape.hidden) + 75 * shape.hidden
    logits = 20 * shape.vocabulary
    return operations, dense + tokens * (shape.layers * streams * shape.width + logits)
