"""A packed row attends as its documents do in rows of their own."""

import pytest
import torch
from transformers import AttentionInterface, MixtralConfig, MixtralForCausalLM

from aurora.sft.packed_attention import NAME, packed_attention


def model() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, initializer_range=0.2,
    )  # fmt: skip
    one = MixtralForCausalLM(config).double().eval()  # in which the order of a sum is no matter
    one.set_experts_implementation("eager")  # grouped_mm has no float64
    return one


def test_documents_are_as_apart_as_in_rows_of_their_own():
    one = model()
    documents = [torch.randint(3, 64, (1, length)) for length in (5, 1, 9, 30)]
    alone = [one(document, use_cache=False).logits for document in documents]
    AttentionInterface.register(NAME, packed_attention)
    one.set_attn_implementation(NAME)
    ends = torch.tensor([0, 5, 6, 15, 45], dtype=torch.int32)
    positions = torch.cat([torch.arange(document.shape[1]) for document in documents])[None]
    packed = one(
        torch.cat(documents, dim=1), position_ids=positions, use_cache=False, cu_seq_lens_q=ends, max_length_q=30
    ).logits
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="cu_seq_lens_q"):  # and never without knowing them
        one(documents[0], use_cache=False)
