"""A whole params.yaml or profile, and what its sections ask of each other."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from aurora.errors import ParamsError
from aurora.params.clean import Clean
from aurora.params.eval import Eval
from aurora.params.format import Format
from aurora.params.merge import Merge
from aurora.params.quantization import Quantization
from aurora.params.section import PARAMS_FILE, Section, describe, strict
from aurora.params.sft import Sft
from aurora.params.source import Source
from aurora.yaml_files import read_yaml


class Params(Section):
    """A whole params.yaml, or a profile that replaces it."""

    sources: dict[Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")], Source]
    quantization: Quantization
    clean: Clean
    format: Format
    sft: Sft
    merge: Merge
    eval: Eval

    @model_validator(mode="after")
    def _sources_suffice(self) -> "Params":
        models = [name for name, source in self.sources.items() if source.kind == "model"]
        if models != ["base"]:
            raise ValueError(f"sources needs exactly one of kind model, named base; found {models}")
        if not any(source.kind == "instructions" for source in self.sources.values()):
            raise ValueError("sources has none of kind instructions; there is nothing to train on")
        formats = {source.format for source in self.sources.values() if source.kind == "benchmark"}
        if self.sft.packing and self.sft.packing_length < self.format.max_length:
            raise ValueError(
                f"sft.packing_length {self.sft.packing_length} is below format.max_length "
                f"{self.format.max_length}; rows would be cut: raise it"
            )
        for task in self.eval.tasks:
            if task not in formats:
                raise ValueError(
                    f"eval.tasks.{task} has no source of format {task}; add one or remove the task"
                )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Reads and checks a whole params file or profile. Raises ParamsError with file, key, value and rule."""
    content = read_yaml(path)
    try:
        return Params.model_validate_json(strict(content))
    except ValidationError as error:
        raise ParamsError(f"{path}: {describe(error)}") from None
