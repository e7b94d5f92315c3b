"""`quantization` of params.yaml: how a model is held in memory."""

from typing import Literal

from aurora.core.params import Section


class Quantization(Section):
    """How the model is held in memory by sft and eval."""

    bits: Literal[4, 16, 32]
    """4: NF4 experts and attention; 16: bfloat16; 32: float32, both dense."""
    double_quant: bool
    """Whether the block scales are themselves quantised to 8 bits (QLoRA, arXiv 2305.14314)."""
    compute_dtype: Literal["bfloat16", "float16", "float32"]
    """Type of activations and of all tensors that are not quantised."""
