"""Tiny random models of many architectures, written as their publishers write them: what a base can be."""

from pathlib import Path

import torch
from stand_ins.tiny_mixtral import VOCABULARY
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from aurora.small_base.tokenizer_folder import write_tokenizer

COMMON = {
    "vocab_size": 32000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
SMALL_EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
DEEPSEEK = (
    SMALL_EXPERTS
    | LATENT
    | {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
        "head_dim": 16,
    }
)
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
# model_type -> what its config has beside COMMON.
ARCHITECTURES: dict[str, dict] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": SMALL_EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 64},
    "qwen3_moe": SMALL_EXPERTS | {"num_experts": 4},
    "qwen3_next": SMALL_EXPERTS | LINEAR_ATTENTION | {"num_experts": 4, "shared_expert_intermediate_size": 64},
    "qwen3_5_moe_text": SMALL_EXPERTS | LINEAR_ATTENTION | {"num_experts": 4, "shared_expert_intermediate_size": 64},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "glm4_moe": SMALL_EXPERTS
    | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 64,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 128,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 64,
    },
    "dots1": SMALL_EXPERTS
    | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {},
    "phi3": {},
    "smollm3": {},
    "olmo2": {},
    "granite": {},
    "glm4": {},
    "cohere": {},
}


def build(kind: str, **changes: object) -> PreTrainedModel:
    """A random float32 model of this model_type, on the CPU."""
    config = CONFIG_MAPPING[kind](**COMMON | ARCHITECTURES[kind] | changes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def write_base(folder: Path, kind: str, **changes: object) -> Path:
    """A folder as a hub holds it: weights as the publisher names them, and a tokeniser."""
    build(kind, **changes).save_pretrained(folder)
    write_tokenizer(VOCABULARY, folder)
    return folder
