"""What a LoRA configuration adapts in a model, asked of PEFT itself on a skeleton without weights."""

import copy
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aurora.core.errors import ModelError
from aurora.model.folder import MIXERS

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch.nn import Module
    from transformers import PreTrainedModel

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Target:
    """One adapted tensor."""

    name: str  # in the model: of a module, or of a parameter such as `….experts.gate_up_proj`
    key: str  # in an adapter's file, in front of `.lora_A.weight`
    r: int
    scale: float  # of B A
    experts: int | None  # of a fused parameter; None for a matrix
    is_parameter: bool  # by PEFT's target_parameters
    transposed: bool = False  # a fused parameter whose matrices are (inputs, outputs)


@dataclass(frozen=True, slots=True)
class Targets:
    """All that a configuration adapts, and the configuration as PEFT reads it for this model."""

    config: "LoraConfig"
    found: list[Target]
    trainable: int  # weights, those of modules_to_save too
    trained_modules: list[str]  # names of modules_to_save in the model

    def experts(self) -> list[Target]:
        """The fused expert tensors among them."""
        return [target for target in self.found if target.experts is not None]


def find_targets(skeleton: "PreTrainedModel", config: "LoraConfig", place: str) -> Targets:
    """The tensors of `skeleton`, a model on the meta device, that PEFT adapts by `config`; both stay as they are.

    Raises ModelError, with `place` in front, where PEFT refuses the configuration or a target matches nothing.
    """
    import torch
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper
    from peft.utils import ModulesToSaveWrapper

    config = copy.deepcopy(config)
    config.base_model_name_or_path = None
    asked = (config.target_modules, config.target_parameters)
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model = get_peft_model(copy.deepcopy(skeleton), config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, re.error) as error:
        raise ModelError(f"{place}: {_reason(error, skeleton)}") from None
    found, trained = [], []
    for path, module in model.named_modules():
        name = path.removeprefix(PREFIX).replace(".base_layer", "")
        if isinstance(module, ModulesToSaveWrapper):
            trained.append(name)
        if not isinstance(module, LoraLayer):
            continue
        r, scale = module.r["default"], module.scaling["default"]
        if isinstance(module, ParamWrapper):
            name = f"{name}.{module.parameter_name}"
            experts = module.num_experts if module._param_ndim == 3 else None
            transposed = experts is not None and not module._did_swap_in_out_features
            found.append(Target(name, path, r, scale, experts, True, transposed))
        else:
            _require_plain(module.get_base_layer(), name, place)
            found.append(Target(name, path, r, scale, None, False))
    _require_matches(skeleton, found, asked, place)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    read = model.peft_config["default"]
    names = [target.name for target in found if target.is_parameter]
    # all-linear adds what some other family calls its router; an adapter that names nothing else is read again without.
    kept = {p for p in read.target_parameters or () if any(n == p or n.endswith(f".{p}") for n in names)}
    if read.target_parameters is not None:
        read.target_parameters = sorted(kept)
    return Targets(read, found, trainable, trained)


def _require_plain(layer: "Module", name: str, place: str) -> None:
    from torch import nn

    if set(name.split(".")[:-1]) & set(MIXERS):
        raise ModelError(
            f"{place}: target_modules: {name} belongs to a module that reads its weight past any adapter; name the linear"
            " layers of attention instead"
        )
    if isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward:
        raise ModelError(
            f"{place}: target_modules: {name} is a {type(layer).__name__}, which gives more than a product, and PEFT has no"
            " adapter for that; name the linear layers instead"
        )


def _reason(error: Exception, skeleton: "PreTrainedModel") -> str:
    reason = str(error).partition("\n")[0][:200]
    if "dropout" in reason:
        return "LoRA on experts or a router knows no dropout; set sft.lora.lora_dropout: 0.0"
    if "not found in the base model" in reason or "No modules were targeted" in reason:
        return f"target_modules matches no layer of the base, a {skeleton.config.model_type}; {_layers(skeleton)}"
    return f"PEFT does not take it for a {skeleton.config.model_type} ({reason})"


def _layers(skeleton: "PreTrainedModel") -> str:
    from torch import nn

    linear = {name.rpartition(".")[2] for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)}
    return f"its linear layers are {', '.join(sorted(linear))}"


def _require_matches(skeleton: "PreTrainedModel", found: list[Target], asked: tuple, place: str) -> None:
    # PEFT is silent about a name that matches nothing beside others that do.
    modules, parameters = asked
    names = {target.name for target in found}
    # What transformers 5 fuses, PEFT takes from the old names of its parts to the new one.
    fused = any(target.is_parameter for target in found)
    for target in sorted(modules) if isinstance(modules, (list, tuple, set)) else ():
        there = any(name == target or name.endswith(f".{target}") for name in names)
        old = fused and target in ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")
        if not there and not old:
            raise ModelError(
                f"{place}: target_modules: {target} matches no layer of the base, a {skeleton.config.model_type};"
                f" {_layers(skeleton)}"
            )
    for target in sorted(parameters or ()):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            there = sorted(
                {".".join(name.split(".")[-2:]) for name, tensor in skeleton.named_parameters() if tensor.dim() == 3}
            )
            raise ModelError(
                f"{place}: target_parameters: {target} matches no parameter of the base, a"
                f" {skeleton.config.model_type}; its fused experts are {', '.join(there) or 'none'}"
            )
