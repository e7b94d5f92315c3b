"""Bytes that a training or an inference holds at its peak, by arithmetic on the shapes of a decoder.

Counted are live tensors: what a card's driver, its kernels and the allocator's gaps take comes on top.
"""

from typing import TYPE_CHECKING

from aurora.model.quantization import Quantization
from aurora.model.sizes import BYTES, WIDTH, held_bytes
from aurora.sft.params import Sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTIMISER = {  # bytes a weight
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_bnb_8bit": 2.1,
    "paged_adamw_8bit": 2.1,
    "adamw_torch_4bit": 1.1,
}


def training_memory(
    skeleton: "PreTrainedModel",
    quantization: Quantization,
    sft: Sft,
    trainable: int,
    length: int,
    most_trained: int,
    card: int | None,
) -> dict[str, int]:
    """Bytes at the peak of a training step with per_device_train_batch_size rows of `length` tokens.

    `card` is the memory of the card in bytes, None for a CPU.
    """
    shape = Shape(skeleton, quantization, card)
    rows = sft.per_device_train_batch_size
    tokens = rows * length
    labels = tokens if sft.packing else rows * most_trained
    layer = shape.layer(tokens, sft)
    kept = shape.layers * (tokens * shape.hidden * shape.width if sft.gradient_checkpointing else layer)
    # In backward: the gradients of the widest step of a layer, and the dense experts of one group.
    inside = shape.backward(tokens) + (layer if sft.gradient_checkpointing else 0)
    return {
        "model": held_bytes(skeleton, quantization),
        "adapter, gradients, optimiser": round(trainable * (4 + 4 + OPTIMISER[sft.optim])),
        "activations kept for backward": kept,
        "one layer or the logits": max(inside, shape.logits(labels)),
    }


def inference_memory(
    skeleton: "PreTrainedModel",
    quantization: Quantization,
    tokens: int,
    context: int,
    replying: int,
    together: int,
    card: int | None,
) -> dict[str, int]:
    """Bytes at the peak of eval, whichever of its parts reaches it.

    `tokens` are forwarded at once on a cache of `context` more (questions), or with a label each (held-out loss, at
    most, of which `together` are in float32 at a time); `replying` are the tokens of a batch of prompts with their
    replies. `card` is as for `training_memory`.
    """
    shape = Shape(skeleton, quantization, card)
    # What a row of a pass may see is a mask of bytes, and once more in the type of the attention.
    mask = tokens * (context + tokens) * (1 + shape.width) + 2 * tokens * tokens
    parts = (
        (context + tokens, shape.forward(tokens) + mask),
        (tokens, max(shape.forward(tokens) + mask, shape.answers(tokens, together))),
        (replying, shape.forward(replying)),
    )
    cached, transient = max(parts, key=lambda part: shape.cache(part[0]) + part[1])
    return {
        "model": held_bytes(skeleton, quantization),
        "keys and values": shape.cache(cached),
        "one layer or the logits": transient,
    }


def _first(config: object, *names: str) -> int:
    """The first of these that a config has."""
    value = next((found for name in names if (found := getattr(config, name, None))), 1)
    return max(value) if isinstance(value, list) else value


class Shape:
    """Sizes of a decoder, and what one layer of it holds for a number of tokens, in bytes."""

    def __init__(self, skeleton: "PreTrainedModel", quantization: Quantization, card: int | None = None) -> None:
        import torch
        from torch import nn

        from aurora.model.experts import bytes_at_once, fused_tensors

        config = skeleton.config.get_text_config()
        dtype = quantization.compute_dtype if quantization.bits == 4 else WIDTH[quantization.bits]
        self.width, self.packed = BYTES[dtype], quantization.bits == 4
        self.card, self.at_once = card, bytes_at_once(card, getattr(torch, dtype))
        self.layers, self.hidden = config.num_hidden_layers, config.hidden_size
        self.vocabulary = config.vocab_size
        head = getattr(config, "head_dim", None) or self.hidden // config.num_attention_heads
        self.queries = config.num_attention_heads * head
        self.keys = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head
        # From the weights, since each family has other names for these in its config.
        fused = [getattr(module, part) for _, module, part in fused_tensors(skeleton) if part == "down_proj"]
        self.experts = len(fused[0]) if fused else 1
        self.experts_each = _first(config, "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts") if fused else 1
        widths = [next((size for size in tensor.shape[1:] if size != self.hidden), self.hidden) for tensor in fused]
        self.inner = max(widths, default=0) or self._dense_width(skeleton)
        self.linear = {
            name.rpartition(".")[2]: module.in_features
            for name, module in skeleton.named_modules()
            if isinstance(module, nn.Linear)
        }

    def _dense_width(self, skeleton: "PreTrainedModel") -> int:
        from torch import nn

        sizes = [
            module.out_features
            for name, module in skeleton.named_modules()
            if isinstance(module, nn.Linear) and module.out_features != self.vocabulary
        ]
        return max(sizes, default=self.hidden)

    def layer(self, tokens: int, sft: Sft) -> int:
        """What autograd keeps of one layer: norms in float32, attention, LoRA's inputs, the experts' products."""
        norms = 2 * 4 * self.hidden
        attention = self.width * (2 * self.queries + 2 * self.queries)
        copies = 4 if self.width < 4 else 0  # LoRA computes in float32
        lora = 0
        listed = sft.lora.target_modules
        for target in self.linear if isinstance(listed, str) else listed:
            size = self.linear.get(target, self.hidden)
            lora += size * (copies + (5 if sft.lora.lora_dropout else 0)) + 4 * 2 * sft.lora.r
        # Packed experts keep what they were given; dense ones what each product was given.
        experts = self.width * (self.hidden if self.packed else self.experts_each * 4 * self.inner)
        return tokens * (norms + attention + lora + experts)

    def backward(self, tokens: int) -> int:
        """Transient: the gradients of the experts' rows, and all that one group of experts holds."""
        # Two float32 copies for the gradient of the routing, which a card does without.
        upcast = 4 * self.inner if self.width < 4 and self.card is None else 0
        rows, dense = self.group(tokens)
        group = rows * self.width * (6 * self.inner + 2 * self.hidden + upcast) + 3 * dense // 2  # up and down
        return tokens * self.width * self.hidden * (self.experts_each + 2) + group

    def forward(self, tokens: int) -> int:
        """Transient without gradients: the product with up, or the gate, which takes no dense matrix."""
        rows, dense = self.group(tokens)
        product = rows * self.width * (2 * self.inner + 2 * self.hidden) + dense
        gate = rows * self.width * (4 * self.inner + 2 * self.hidden)
        kept = tokens * (self.width * self.hidden * (self.experts_each + 1) + 4 * self.hidden)
        if self.card is None:  # gate, up and the rows of both, with the dense matrices of up and down
            return kept + rows * self.width * (3 * self.inner + 2 * self.hidden) + 3 * dense // 2
        return kept + max(product, gate)

    def group(self, tokens: int) -> tuple[int, int]:
        """Rows of the experts that are dense together, and the bytes of their matrices, of gate and up.

        The rows are twice their share, or half of all, which one expert may well get.
        """
        matrix = 2 * self.inner * self.hidden * self.width
        size = min(self.experts, max(1, self.at_once // matrix))
        share = min(1, max(0.5, 2 * size / self.experts))
        # A larger matrix goes slab by slab.
        return round(share * self.experts_each * tokens), min(size * matrix, self.at_once)

    def cache(self, tokens: int) -> int:
        """Keys and values of all layers, and those of one twice, which grow by a copy."""
        return 2 * (self.layers + 1) * tokens * self.keys * self.width

    def answers(self, tokens: int, together: int) -> int:
        """Logits at every position, of which `together` are at a time in float32, with their logarithms."""
        copies = (4 if self.width < 4 else 0) + 4
        return self.vocabulary * (tokens * self.width + min(tokens, together) * copies)

    def logits(self, labels: int) -> int:
        """Logits at the labelled positions, once more in float32, their logarithms, and the gradient."""
        return self.vocabulary * labels * (2 * self.width + (4 if self.width < 4 else 0) + 4)
