"""A whole params.yaml or profile, and what its sections ask of each other."""

from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field, ValidationError, model_validator

from aurora.checkpoints.params import Checkpoints
from aurora.clean.params import Clean
from aurora.core.errors import ParamsError
from aurora.core.params import PARAMS_FILE, Section, describe, strict
from aurora.core.yaml_files import read_yaml
from aurora.eval.params import Benchmark, Eval
from aurora.format.params import Format
from aurora.merge.params import Merge
from aurora.model.quantization import Quantization
from aurora.sft.params import Sft
from aurora.sources.source import Download, HubModel, LocalSource, Source

Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]


class Params(Section):
    """A whole params.yaml, or a profile that replaces it."""

    sources: dict[Name, LocalSource]
    """Files and folders by their paths; DVC watches them."""
    downloads: dict[Name, Download]
    """Addresses with pins, whose bytes `dvc push` shares."""
    hub_models: dict[Name, HubModel]
    """Models that the hub gives again, byte for byte: `dvc push` leaves them out."""
    quantization: Quantization
    clean: Clean
    format: Format
    sft: Sft
    merge: Merge
    eval: Eval
    checkpoints: Checkpoints

    @property
    def all_sources(self) -> dict[str, Source]:
        """Sources of all sections."""
        return {**self.sources, **self.downloads, **self.hub_models}

    def fetch_stage(self, name: str) -> str:
        """The instance of a stage that fetches a source."""
        if name in self.hub_models:
            return f"fetch_hub@{name}"
        return f"fetch_download@{name}" if name in self.downloads else f"fetch@{name}"

    @model_validator(mode="after")
    def _scored_checkpoints_are_kept(self) -> "Params":
        for step in self.checkpoints.steps:
            if step not in self.sft.keep_checkpoints:
                raise ValueError(
                    f"checkpoints.steps has {step}, which sft.keep_checkpoints lacks, so that there is nothing to score; "
                    "add it there"
                )
        for name in self.checkpoints.benchmarks:
            if name not in self.eval.tasks:
                raise ValueError(f"checkpoints.benchmarks has {name}, which eval.tasks lacks; add it there")
        return self

    @model_validator(mode="after")
    def _sources_suffice(self) -> "Params":
        sources = [*self.sources.items(), *self.downloads.items(), *self.hub_models.items()]
        models = [name for name, source in sources if source.kind == "model"]
        if models != ["base"]:
            raise ValueError(
                "sources, downloads and hub_models need exactly one of kind model together, named base; found "
                f"{models}: remove the others or add it"
            )
        if len(sources) > len(self.all_sources):
            raise ValueError("sources and downloads have an entry of the same name; rename one of them")
        if not any(source.kind == "instructions" for _, source in sources):
            raise ValueError("sources and downloads have none of kind instructions; there is nothing to train on")
        benchmarks = {name: source.format for name, source in sources if source.kind == "benchmark"}
        for name, format_ in benchmarks.items():
            if name != format_:
                raise ValueError(
                    f"{name} is of format {format_}; dvc.yaml lists a benchmark by the name of its format: "
                    f"rename it to {format_}"
                )
        missing = [name for name in get_args(Benchmark) if name not in benchmarks]
        if missing:
            raise ValueError(
                f"sources and downloads have no benchmark {missing[0]}; dvc.yaml lists it for clean, which searches the training rows for its "
                "questions, and for eval: add it as profiles/paper.yaml has it"
            )
        if not any(source.kind == "prompts" for _, source in sources):
            raise ValueError(
                "sources and downloads have none of kind prompts; dvc.yaml lists data/raw/prompts for eval: add language_confusion as "
                "params.yaml in the repository has it"
            )
        if self.sft.packing and self.sft.packing_length < self.format.max_length:
            raise ValueError(
                f"sft.packing_length {self.sft.packing_length} is below format.max_length "
                f"{self.format.max_length}; rows would be cut: raise it"
            )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Reads and checks a whole params file or profile. Raises ParamsError with file, key, value and rule."""
    content = read_yaml(path)
    try:
        return Params.model_validate_json(strict(content))
    except ValidationError as error:
        raise ParamsError(f"{path}: {describe(error)}") from None
