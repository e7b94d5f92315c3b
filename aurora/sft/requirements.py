"""Whether this machine and installation have what the precision and the optimiser of a training need."""

from aurora.core.errors import ParamsError
from aurora.sft.params import Sft


def check_surroundings(sft: Sft) -> None:
    """Raises ParamsError, naming the parameter and what to set or install, where something is lacking."""
    import torch
    from transformers.utils import is_torchao_available

    card = torch.cuda.is_available()
    if sft.optim == "adamw_torch_4bit" and not is_torchao_available():
        raise ParamsError(
            "params.yaml: sft.optim adamw_torch_4bit needs torchao, which is not installed; pip install -e"
            " '.[torchao]' -c constraints.txt"
        )
    if sft.optim == "paged_adamw_8bit" and not card:
        raise ParamsError(
            "params.yaml: sft.optim paged_adamw_8bit pages memory of a card, and there is none; set adamw_torch"
        )
    if sft.precision == "fp16" and not card:
        raise ParamsError("params.yaml: sft.precision fp16 needs a card, and there is none; set fp32 or bf16")
    if sft.precision == "bf16" and card and not torch.cuda.is_bf16_supported():
        raise ParamsError("params.yaml: sft.precision bf16 is not supported by this card; set fp16")
