"""Random Mixtrals of two layers: the shape of the smallest that NF4 takes, and one with the real tokeniser."""

from functools import cache
from pathlib import Path

import mistral_common
import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from aurora.model.quantization import Quantization
from aurora.small_base.tokenizer_folder import write_tokenizer

NF4 = Quantization(bits=4, double_quant=True, compute_dtype="float32")
DENSE = Quantization(bits=32, double_quant=True, compute_dtype="float32")
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
VOCABULARY = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


@cache
def tiny_model(attention: str = "sdpa", seed: int = 0) -> MixtralForCausalLM:
    """float32; weights are large enough for answers to differ from question to question."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=32000,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
    )
    return MixtralForCausalLM(config).eval()


def write_model(folder: Path, seed: int = 0) -> Path:
    """A model folder as fetch and merge leave it."""
    tiny_model(seed=seed).save_pretrained(folder)
    write_tokenizer(VOCABULARY, folder)
    return folder


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokeniser alone, written into `folder`."""
    write_tokenizer(VOCABULARY, folder)
    return AutoTokenizer.from_pretrained(folder)
