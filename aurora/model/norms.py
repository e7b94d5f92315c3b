"""Norms in one kernel, where transformers has eight: what a card would otherwise spend a tenth of its bytes on."""

from inspect import getsource
from types import MethodType

import torch
from torch import nn
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm


def fuse_norms(model: nn.Module) -> int:
    """Has each norm of Mixtral's form, by the text of its code, computed by torch's kernel; returns their number.

    Products with the weight are then rounded once instead of twice. A norm of another form stays as it is.
    """
    plain, found = getsource(MixtralRMSNorm.forward), 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and getsource(type(module).forward) == plain:
            module.forward = MethodType(_fused, module)
            found += 1
    return found


def _fused(self: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    with torch.autocast(hidden_states.device.type, enabled=False):  # which would compute and return float32
        return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
