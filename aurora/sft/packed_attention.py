"""Attention within each document of a packed row, without a mask over all pairs of its tokens."""

from typing import TYPE_CHECKING

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from aurora.model.folder import has_plain_attention

if TYPE_CHECKING:
    from peft import PeftModel

NAME = "aurora_packed"  # in transformers' attention interface; a name without a mask function gets no mask


def attend_within_documents(model: "PeftModel") -> None:
    """Has a model take its documents from the collator's cu_seq_lens_q; one with other attention keeps its masks."""
    config = model.config
    dropout = getattr(config.get_text_config(), "attention_dropout", 0.0)
    if config._attn_implementation == "sdpa" and has_plain_attention(config) and not dropout:
        AttentionInterface.register(NAME, packed_attention)
        model.get_base_model().set_attn_implementation(NAME)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Query (1, heads, T, d), key and value (1, their heads, T, d) to (1, T, heads, d).

    `cu_seq_lens_q` (documents + 1,) int32 says where the documents begin, and where the last one ends.
    """
    if query.is_cuda and query.dtype != torch.float32:
        rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, d)
        lengths = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        return varlen_attn(*rows, *lengths, scale=scaling, window_size=(-1, 0), enable_gqa=True)[None], None
    sizes = cu_seq_lens_q.diff().tolist()
    documents = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    parts = [sdpa_attention_forward(module, *document, None, scaling=scaling)[0] for document in documents]
    return torch.cat(parts, dim=1), None
