"""Mixtral-8x7B as `load_model` would return it on a card, in fake tensors, and torch taught to work with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.nn import Linear4bit
from stand_ins.fake_cuda.meter import Meter
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import MixtralConfig, MixtralForCausalLM

from aurora.model.experts import fused_tensors, replace
from aurora.model.fused import fuse
from aurora.model.nf4 import PackedExperts
from aurora.model.packing import PackingConfig, PackingQuantizer, register
from aurora.model.quantization import Quantization

DEVICE = "cuda:0"
MODE = FakeTensorMode(allow_non_fake_inputs=True)
SHAPE = {"rope_theta": 1e6, "max_position_embeddings": 32768}


def mixtral(layers: int, quantization: Quantization) -> MixtralForCausalLM:
    """The true width, with `layers` of its 32 layers."""
    register()
    dtype = getattr(torch, quantization.compute_dtype)
    settings = PackingConfig(quantization.double_quant, quantization.compute_dtype)
    quantizer = PackingQuantizer(settings, pre_quantized=False)
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(**SHAPE, num_hidden_layers=layers)).to(dtype)
    model.hf_quantizer = quantizer
    quantizer.preprocess_model(model, device_map={"": DEVICE})
    with MODE, answers(None):
        for _, module, name in list(fused_tensors(model)):
            shape = tuple(getattr(module, name).shape)
            replace(module, name, PackedExperts(shape, quantization.double_quant, dtype, DEVICE))
        for module in model.modules():
            if isinstance(module, Linear4bit):
                _quantize(module, quantization, dtype)
                continue
            for name, tensor in list(module.named_parameters(recurse=False)):
                if tensor.is_meta:
                    value = torch.empty(tensor.shape, dtype=dtype, device=DEVICE)
                    module._parameters[name] = torch.nn.Parameter(value, requires_grad=tensor.dim() != 1)
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        for name, tensor in list(model.model.rotary_emb._buffers.items()):
            model.model.rotary_emb._buffers[name] = torch.empty(tensor.shape, device=DEVICE)
    model.config.quantization_config = settings
    quantizer._process_model_after_weight_loading(model)
    model.hf_device_map = {"": DEVICE}
    fuse(model)
    return model.eval()


def _quantize(module: Linear4bit, quantization: Quantization, dtype: torch.dtype) -> None:
    # Params4bit cannot wrap a fake tensor; bitsandbytes asks for these attributes alone.
    dense = torch.empty(module.out_features, module.in_features, dtype=dtype, device=DEVICE)
    packed, state = bnb.quantize_4bit(
        dense, blocksize=64, compress_statistics=quantization.double_quant, quant_type="nf4"
    )
    weight = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state, weight.bnb_quantized, weight.quant_type = state, True, "nf4"
    weight.compress_statistics, weight.blocksize, weight.quant_storage = True, 64, torch.uint8
    module._parameters["weight"], module.quant_state = weight, state


def held(model: torch.nn.Module) -> list[torch.Tensor]:
    """All tensors of the model, those of bitsandbytes' states too."""
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, Linear4bit)]
    inner = [tensor for s in states for tensor in (s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code)]
    return [*model.parameters(), *model.buffers(), *inner]


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """As a card would choose: flash attention without a mask, the memory-efficient kernel with one."""
    if attn_mask is None:
        groups = query.shape[1] // key.shape[1]
        # Flash takes grouped heads as they are; its fake backward alone wants the full number.
        if groups > 1 and torch.is_grad_enabled():
            key, value = (
                tensor[:, :, None].expand(-1, -1, groups, -1, -1).reshape(query.shape[0], -1, *tensor.shape[2:])
                for tensor in (key, value)
            )
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    bias = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype) if attn_mask.dtype == torch.bool else attn_mask
    bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    needed = query.requires_grad or key.requires_grad
    kernel = aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, bias, needed, dropout_p, False, scale=scale)[0]


aten = torch.ops.aten
_tensor = torch.tensor


def _made(data, *, device=None, **options):
    """torch.tensor asks a card's allocator; by way of the CPU it is the same upload."""
    made = _tensor(data, **options)
    return made if device is None else made.to(device)


def _applied(self, function, recurse=True):
    """Module._apply without the swap of data, which a fake tensor does not take."""
    for child in self.children() if recurse else ():
        child._apply(function)
    with torch.no_grad():
        for name, tensor in self._parameters.items():
            if tensor is not None and (moved := function(tensor)) is not tensor:
                self._parameters[name] = torch.nn.Parameter(moved, requires_grad=tensor.requires_grad)
        for name, tensor in self._buffers.items():
            if tensor is not None:
                self._buffers[name] = function(tensor)
    return self


OWN = torch.library.Library("aten", "IMPL")
# With these a card has kernels, where a CPU build of torch takes them apart.
for _name in ("silu_backward", "_fused_rms_norm", "_fused_rms_norm_backward"):
    OWN.impl(_name, lambda *args, **options: None, "CUDA")


@contextmanager
def answers(meter: Meter | None) -> Iterator[None]:
    """Within it torch and bitsandbytes take fake tensors where they would look at values."""
    codes = {
        "get_4bit_type": lambda kind, device=None, blocksize=64: torch.empty(16, device=device),
        "name2qmap": {"dynamic": torch.empty(256, device=DEVICE)},
    }
    with (
        mock.patch.multiple(bnb, **codes),
        mock.patch("transformers.masking_utils.is_tracing", lambda tensor: False),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention),
        mock.patch.object(torch.nn.Module, "_apply", _applied),
        mock.patch.object(torch, "tensor", _made),
        mock.patch.object(FakeTensor, "tolist", lambda tensor: meter.values_of(tensor)),
    ):
        yield
