"""An adapter on a model in memory: PEFT's own layers, and for experts in 4 bits one that stays low-rank."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights, set_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from aurora.core.errors import ModelError
from aurora.lora.targets import PREFIX, Target, Targets, find_targets
from aurora.model.experts import ExpertLora
from aurora.model.nf4 import PackedExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"  # PEFT's name of the only adapter


class LoraPackedExperts(nn.Module, LoraLayer):
    """LoRA on one packed expert tensor, in the two matrices that PEFT's target_parameters has for a dense one.

    `lora_A` is (experts x r, inputs), expert by expert; `lora_B` is (outputs, r x experts), rank by rank.
    """

    def __init__(self, base_layer: PackedExperts, target: Target, transposed: bool) -> None:
        """`transposed` for matrices of shape (inputs, outputs), as transformers calls it."""
        nn.Module.__init__(self)
        self._transposed = transposed
        LoraLayer.__init__(self, base_layer)
        self.experts = base_layer.shape[0]
        self._active_adapter = [ADAPTER]
        width = target.r * self.experts
        self.r[ADAPTER], self.scaling[ADAPTER] = target.r, target.scale
        self.lora_alpha[ADAPTER] = target.scale * target.r
        self.lora_dropout[ADAPTER] = nn.Identity()
        self.lora_bias[ADAPTER] = self.use_rslora[ADAPTER] = self.use_dora[ADAPTER] = False
        device = base_layer.codes.device
        self.lora_A[ADAPTER] = nn.Linear(self.in_features, width, bias=False, device=device)
        self.lora_B[ADAPTER] = nn.Linear(width, self.out_features, bias=False, device=device)
        self.reset_lora_parameters(ADAPTER, init_lora_weights=True)
        self.set_adapter([ADAPTER])

    def _get_in_out_features(self, module: PackedExperts) -> tuple[int, int]:
        rows, columns = module.shape[1:]
        return (rows, columns) if self._transposed else (columns, rows)

    def expert_lora(self) -> ExpertLora | None:
        """What the experts compute with; None while the adapter is switched off."""
        if self.disable_adapters or ADAPTER not in self.active_adapters:
            return None
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        a = a.view(self.experts, -1, self.in_features)
        b = b.view(self.out_features, -1, self.experts).permute(2, 0, 1)
        return ExpertLora(a, b, self.scaling[ADAPTER])

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Packed experts are computed with by their own function."""
        raise NotImplementedError


def attach(model: "PreTrainedModel", targets: Targets) -> PeftModel:
    """Puts a new adapter on a loaded model; on dense experts PEFT's own, whose weight is dense while it is used."""
    experts = [
        target
        for target in targets.experts()
        if isinstance(model.get_submodule(target.name.rpartition(".")[0])._modules.get(_leaf(target)), PackedExperts)
    ]
    config = copy.deepcopy(targets.config)
    if experts:
        rest = [target for target in targets.found if target not in experts]
        config.target_modules = [target.name for target in rest if not target.is_parameter]
        config.target_parameters = [target.name for target in rest if target.is_parameter]
        if not rest:
            config.target_modules = DUMMY_TARGET_MODULES  # PEFT's word for nothing of its own
    model = get_peft_model(model, config)
    for target in experts:
        parent, _, name = target.name.rpartition(".")
        module = model.get_base_model().get_submodule(parent)
        store = module._modules[name]
        setattr(module, name, LoraPackedExperts(store, target, bool(getattr(module, "is_transposed", False))))
    return model


def _leaf(target: Target) -> str:
    return target.name.rpartition(".")[2]


def renamed(state: dict[str, torch.Tensor], targets: Targets, to_disk: bool) -> dict[str, torch.Tensor]:
    """An adapter's tensors by PEFT's names for a dense model (`to_disk`), or by those of a packed one."""
    pairs = {f"{PREFIX}{target.name}": target.key for target in targets.experts()}
    if not to_disk:
        pairs = {key: name for name, key in pairs.items()}
    result = {}
    for name, tensor in state.items():
        module, found, part = name.rpartition(".lora_")
        result[f"{pairs.get(module, module)}{found}{part}"] = tensor
    return result


def is_packed(model: nn.Module) -> bool:
    """Whether an adapter of this model has experts in 4 bits."""
    return any(isinstance(module, LoraPackedExperts) for module in model.modules())


def load_adapter(model: "PreTrainedModel", skeleton: "PreTrainedModel", adapter: Path) -> PeftModel:
    """Puts the adapter of a PEFT folder on a loaded model. Raises ModelError where it does not fit."""
    config = LoraConfig.from_pretrained(adapter)
    targets = find_targets(skeleton, config, str(adapter))
    tuned = attach(model, targets)
    load_weights(tuned, targets, adapter)
    return tuned


def load_weights(model: PeftModel, targets: Targets, adapter: Path) -> None:
    """Copies the weights of a PEFT folder into the adapter of `model`; raises ModelError where they do not fit."""
    state = load_peft_weights(str(adapter), device="cpu")
    if is_packed(model):
        state = renamed(state, targets, to_disk=False)
    try:
        report = set_peft_model_state_dict(model, state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{adapter}: does not fit this model ({str(error).splitlines()[0][:200]})") from None
    if report.unexpected_keys:
        raise ModelError(f"{adapter}: {report.unexpected_keys[0]} has no place in this model")
