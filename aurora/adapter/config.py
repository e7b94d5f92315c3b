"""adapter_config.json of a PEFT LoRA folder, checked: rank, alpha and their patterns, as a merge and a card read them."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from aurora.core.files import read_checked

CONFIG = "adapter_config.json"


def _expression(pattern: str) -> str:
    try:
        re.compile(ending(pattern))
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    return pattern


def ending(pattern: str) -> str:
    """The regular expression by which PEFT matches a pattern with the end of a module's name."""
    return rf"(.*\.)?({pattern})$"


Pattern = Annotated[str, AfterValidator(_expression)]
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class AdapterConfig(BaseModel):
    """What is read of an adapter_config.json, whose other fields are left to the reader."""

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    lora_dropout: float | None = None
    use_rslora: bool = False
    rank_pattern: dict[Pattern, Rank] | None = None
    alpha_pattern: dict[Pattern, Alpha] | None = None
    target_modules: list[str] | str | None = None


def read_adapter_config(adapter: Path) -> dict:
    """adapter_config.json as a dictionary; raises DataError if it is missing or no configuration of a LoRA."""
    return read_checked(adapter / CONFIG, AdapterConfig, "sft")


def target_modules(config: dict) -> str:
    """The names of the adapted modules with commas between them, or the expression that they match."""
    found = config.get("target_modules") or ""
    return found if isinstance(found, str) else ", ".join(sorted(found))
