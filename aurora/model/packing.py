"""The hooks by which transformers' own loader packs experts as they arrive, and packed checkpoints.

A quantiser registered under METHOD extends bitsandbytes' 4-bit one: nn.Linear becomes Linear4bit as ever, and a
fused expert tensor is packed as its parts are read: no more than one tensor of the checkpoint is dense at a time.
"""

import copy
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationMethod

from aurora.core.errors import ModelError
from aurora.core.files import flush, replacing, write_json
from aurora.model.experts import FUSED, IMPLEMENTATION, fused_tensors, is_fused, packed_experts_forward, replace
from aurora.model.folder import INDEX, MERGED_EXPERTS, METHOD
from aurora.model.nf4 import PackedExperts

SHARD = "2GB"  # what saving copies at a time


class PackingConfig(BitsAndBytesConfig):
    """bitsandbytes' NF4 with the three settings that a packed checkpoint records."""

    def __init__(
        self,
        double_quant: bool = True,
        compute_dtype: str = "bfloat16",
        skip_modules: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=skip_modules,
        )
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        """The entry of config.json."""
        return {
            "quant_method": METHOD,
            "double_quant": self.bnb_4bit_use_double_quant,
            "compute_dtype": str(self.bnb_4bit_compute_dtype).removeprefix("torch."),
        }

    to_diff_dict = to_dict


class PackingQuantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' 4-bit quantiser that packs fused expert tensors too."""

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Also tells transformers what a fused tensor weighs on the card: half a byte a weight."""
        module, name = get_module_from_name(model, param_name)
        return is_fused(module, name) or super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack(self)

    def update_weight_conversions(self, weight_conversions: list, model: PreTrainedModel) -> list:
        """The model's conversions, without the steps that would put all experts of a layer together dense."""
        if not self.pre_quantized:
            weight_conversions = [_unmerged(conversion) for conversion in weight_conversions]
        return super().update_weight_conversions(weight_conversions, model)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, device_map: Any, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, device_map, **kwargs)
        if self.pre_quantized:
            settings = self.quantization_config
            for _, module, name in list(fused_tensors(model)):
                shape = tuple(getattr(module, name).shape)
                double_quant, dtype = settings.bnb_4bit_use_double_quant, settings.bnb_4bit_compute_dtype
                packed = PackedExperts(shape, double_quant, dtype, "meta")
                module._is_hf_initialized = packed._is_hf_initialized = True
                replace(module, name, packed)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        model = super()._process_model_after_weight_loading(model, **kwargs)
        # The name by which Trainer and `model.to` know that a 4-bit model is neither moved nor cast.
        model.quantization_method = QuantizationMethod.BITS_AND_BYTES
        if any(isinstance(module, PackedExperts) for module in model.modules()):
            model.set_experts_implementation(IMPLEMENTATION)
        for module in model.modules():
            if isinstance(module, PackedExperts):
                module.requires_grad_(False)
            elif isinstance(module, Linear4bit):
                # On some CPUs bitsandbytes would repack the weight in evaluation, and compute in bfloat16.
                module.support_avx512bf16_for_cpu = False
        return model


class _OneByOne(WeightConverter):
    """Hands over how to read each tensor of a single expert, where transformers would read those of a layer at once."""

    __slots__ = ()

    def materialize_tensors(self) -> dict:
        found = {pattern: list(readers) for pattern, readers in self.collected_tensors.items()}
        self.collected_tensors.clear()
        return found


class _Keep(ConversionOps):
    """Leaves the tensors of single experts as they come, for `_Pack`."""

    def convert(self, input_dict: dict, **kwargs: Any) -> dict:
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError("a packed model is saved by save_packed")


class _Pack(ConversionOps):
    """Packs a fused tensor into its module, and leaves every other weight to bitsandbytes."""

    def __init__(self, hf_quantizer: PackingQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self, input_dict: dict, source_patterns: list[str], full_layer_name: str, model: PreTrainedModel, **kwargs: Any
    ) -> dict:
        module, name = get_module_from_name(model, full_layer_name)
        if not is_fused(module, name):
            usual = Bnb4bitQuantize(self.hf_quantizer)
            return usual.convert(input_dict, full_layer_name=full_layer_name, model=model, **kwargs)
        shape = tuple(getattr(module, name).shape)
        found = [value if isinstance(value, list) else [value] for value in input_dict.values()]
        if any(callable(reader) for reader in found[0]):  # of single experts: gate and up, or down
            parts = [input_dict.pop(pattern) for pattern in source_patterns]
        else:  # fused on disk, or by transformers
            ((whole,),) = found
            parts = [list(whole)]
        if any(len(part) != shape[0] for part in parts):
            raise ValueError(f"{full_layer_name}: {[len(part) for part in parts]} experts of {shape[0]}")
        packed = None
        for expert in range(shape[0]):
            arriving = _arriving(parts, expert)
            first = next(arriving)
            packed = packed or self._empty(shape, first.device)
            packed.put(expert, chain([first], arriving))
            del first
        assert packed is not None  # there is at least one expert
        for owner in (module, packed, *packed.parameters()):
            owner._is_hf_initialized = True
        replace(module, name, packed)
        kwargs["missing_keys"].discard(full_layer_name)
        return {}

    def _empty(self, shape: tuple[int, int, int], device: torch.device) -> PackedExperts:
        settings = self.hf_quantizer.quantization_config
        return PackedExperts(shape, settings.bnb_4bit_use_double_quant, settings.bnb_4bit_compute_dtype, device)


def _arriving(parts: list[list], expert: int) -> Iterator[torch.Tensor]:
    # An expert's tensors from top to bottom, each read when it is asked for and forgotten here.
    for part in parts:
        value, part[expert] = part[expert], None
        yield value() if callable(value) else value


def arrive_one_by_one(model: PreTrainedModel) -> bool:
    """Whether the checkpoint stores the experts of this kind of model so that each tensor can be packed by itself."""
    conversions = [item for item in get_model_conversion_mapping(model) if isinstance(item, WeightConverter)]
    fusing = [item for item in conversions if item.target_patterns[0].rpartition(".")[2] in FUSED]
    return all(isinstance(_unmerged(item), _OneByOne) for item in fusing)


def _unmerged(conversion: Any) -> Any:
    # Of other conversions (transposed, interleaved) the fused result is packed once it is complete.
    if not isinstance(conversion, WeightConverter):
        return conversion
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in conversion.operations]
    target = conversion.target_patterns[0].rpartition(".")[2]
    if target not in FUSED or steps not in MERGED_EXPERTS:
        return conversion
    sources, targets = conversion._original_source_patterns, conversion._original_target_patterns
    single = _OneByOne(list(sources), list(targets), operations=[_Keep()])
    single.scope_prefix, single.base_model_prefix = conversion.scope_prefix, conversion.base_model_prefix
    return single


def register() -> None:
    """Makes the experts function and the quantiser known to transformers; calling it again does nothing."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, packed_experts_forward)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(PackingQuantizer)
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(PackingConfig)


def save_packed(model: PreTrainedModel, folder: Path) -> None:
    """Writes a packed model as safetensors, config.json and generation_config.json; `load_model` reads it back.

    The tensors are the bits in memory, so that a second load reads a quarter of the dense size.
    Raises ModelError for a model that is not packed or that carries an adapter.
    """
    if not any(isinstance(module, (PackedExperts, Linear4bit)) for module in model.modules()):
        raise ModelError(f"{folder}: only a model loaded in 4 bits can be saved packed; set quantization.bits: 4")
    state = model.state_dict()
    adapter = [name for name in state if "lora_" in name]
    if adapter:
        raise ModelError(f"{folder}: {adapter[0]} belongs to an adapter; save the adapter by itself, the base packed")
    plan = split_torch_state_dict_into_shards(state, max_shard_size=SHARD)
    with replacing(folder) as partial:
        partial.mkdir()
        for file, names in plan.filename_to_tensors.items():
            # bitsandbytes shares the table of the sixteen values between matrices; a file may not.
            tensors = {name: state[name].contiguous().to("cpu", copy=True) for name in names}
            save_file(tensors, partial / file, metadata={"format": "pt"})
            flush(partial / file)  # or a crash could leave zeros behind a name that says it is whole
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
            write_json(partial / INDEX, index)
        copy.deepcopy(model.config).save_pretrained(partial)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(partial)
