"""Sparse upcycling (arXiv 2212.05055): a dense Llama as a Mixtral whose experts are copies of its MLP.

Mixtral weighs the chosen experts so that their shares add up to one; while they are equal, it computes the dense model,
whatever the router says. Training that reaches the experts would make them differ; one of attention alone does not.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.sources.source import Upcycle
from aurora.upcycled_base.llama_file import LAYER, MLP, LlamaFile

if TYPE_CHECKING:
    import torch

SHARD = "256MB"
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
EXPERT = dict(zip(MLP, ("w1", "w3", "w2"), strict=True))  # in the names of Mixtral's own checkpoint


def write_mixtral(llama: LlamaFile, upcycle: Upcycle, folder: Path) -> None:
    """Writes config.json, generation_config.json and safetensors shards (bfloat16) into `folder`."""
    from huggingface_hub import save_torch_state_dict
    from transformers import GenerationConfig, MixtralConfig

    config = MixtralConfig(
        **llama.config,
        num_local_experts=upcycle.num_local_experts,
        num_experts_per_tok=upcycle.num_experts_per_tok,
        architectures=["MixtralForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    tokens = {name: llama.config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    GenerationConfig(**{f"{name}_token_id": token for name, token in tokens.items()}).save_pretrained(folder)
    tensors = dict(upcycled(llama, upcycle, config.initializer_range))
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD)


def upcycled(llama: LlamaFile, upcycle: Upcycle, deviation: float) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Name and bfloat16 tensor of the whole checkpoint, a layer after the other.

    Routers are normal with standard deviation `deviation`, as a new Mixtral's are, in one stream of the seed.
    """
    import torch

    def read(name: str) -> torch.Tensor:
        return torch.tensor(llama.read(name)).to(torch.bfloat16)

    order = torch.Generator().manual_seed(upcycle.router_seed)
    for name, target in OUTER.items():
        if f"{name}.weight" in llama.tensors:
            yield f"{target}.weight", read(name)
    for number in range(llama.config["num_hidden_layers"]):
        prefix, block = f"model.layers.{number}", LAYER.format(number)
        for name, target in INNER.items():
            yield f"{prefix}.{target}.weight", read(block + name)
        router = torch.empty(upcycle.num_local_experts, llama.config["hidden_size"])
        router.normal_(0.0, deviation, generator=order)
        yield f"{prefix}.block_sparse_moe.gate.weight", router.to(torch.bfloat16)
        for name, target in EXPERT.items():
            dense = read(block + name)
            for expert in range(upcycle.num_local_experts):
                # A copy, since tensors that share memory would be saved once.
                yield f"{prefix}.block_sparse_moe.experts.{expert}.{target}.weight", dense.clone()
