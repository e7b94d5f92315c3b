"""Every knob of params.yaml: one frozen model a section, a unit under each field, unknown keys refused."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from aurora.errors import ParamsError
from aurora.uris import parse

PARAMS_FILE = Path("params.yaml")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of all sections: immutable, strict about keys, and a number is never read from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(Section):
    """One outside input: instruction data, a benchmark or the base model. `fetch` has one instance each."""

    kind: Literal["instructions", "benchmark", "model"]
    """What it is for; the fetched files lie in data/raw/<kind>/<name>."""
    uri: str
    """A path, `file:PATH`, `embedded:small_base`, `https://…`, `hf://[datasets/]OWNER/NAME@COMMIT[/PATH]`;
    `!/FOLDER` behind a zip or tar file takes a folder or file out of it."""
    dep: str
    """What of this repository the instance is made from, for DVC to watch: the local path itself, the code of
    the embedded base (aurora/small_base), or the downloader (aurora/fetch/hub)."""
    format: Literal["alpaca", "sharegpt", "messages", "mmlu", "ceval", "cmmlu", "transformers"]
    """Published file format, which chooses the reader."""
    licence: str
    """SPDX identifier or the licensor's words; goes into manifests and model cards."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the downloaded file, in hex."""
    git_blob: str | None = Field(None, pattern="^[0-9a-f]{40}$")
    """Git blob id of the downloaded file, in hex."""
    bytes: Annotated[int, Field(ge=0)] | None = None
    """Size of the downloaded file, in bytes."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Rows that the paper counts in this file; a difference is reported by clean, not refused."""

    pin: Literal["record"] | None = None
    """record: the first fetch writes the SHA-256 of what it finds into the manifest, and a later one that finds
    anything else fails; for an hf:// branch or an https:// address whose SHA-256 is not known."""

    @property
    def revision(self) -> str | None:
        """Commit, branch or tag of a hf:// URI, else None."""
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

    @model_validator(mode="after")
    def _is_pinned_and_watched(self) -> "Source":
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
        if (file_pins or self.bytes is not None) and (address.scheme == "embedded" or not address.path):
            raise ValueError(
                "sha256, git_blob and bytes are of one file, and uri names a whole model; remove them"
            )
        wanted = {"path": address.path, "embedded": "aurora/small_base"}.get(
            address.scheme, "aurora/fetch/hub"
        )
        if self.dep != wanted:
            raise ValueError(
                f"dep is '{self.dep}' but DVC must watch '{wanted}' for this uri; write dep: {wanted}"
            )
        formats = {
            "instructions": ("alpaca", "sharegpt", "messages"),
            "benchmark": ("mmlu", "ceval", "cmmlu"),
            "model": ("transformers",),
        }[self.kind]
        if self.format not in formats:
            raise ValueError(f"format '{self.format}' is not one of kind {self.kind}: {', '.join(formats)}")
        return self


class Clean(Section):
    """Rules of the clean stage, each a switch or a threshold; aurora/clean/filters.py says what each rule does."""

    faulty_round: Literal["cut", "drop"]
    """A fault behind the first round cuts the conversation in front of it (mended, counted), or drops it."""
    wrong_roles: Literal["trim", "drop"]
    """A conversation that begins with the assistant or ends on the user is trimmed (counted), or dropped."""
    invisible_characters: bool
    """Remove control, zero-width, directional and private-use characters; joiners of emoji stay."""
    html_remnants: bool
    """Remove tags and entities of web pages outside code and conversations about code."""
    mojibake: bool
    """Repair UTF-8 read in another encoding where the repair is certain, else the round is faulty."""
    placeholder_answers: bool
    """Answers such as `<noinput>` or 无输入 are faulty; the same as Alpaca input counts as no input."""
    truncated_answers: bool
    """Answers cut off mid-text are faulty, unless the next prompt asks to go on."""
    truncated_from: Annotated[int, Field(ge=1)]
    """Characters from which an answer without an end mark can count as cut off; almost all cuts lie beyond 300."""
    other_models: bool
    """Answers that present themselves as another vendor's model are faulty."""
    refusals: bool
    """Answers that refuse, or only ask for the text that the prompt forgot, are faulty."""
    leaked_translation_prompts: bool
    """A conversation whose first prompt is the order to the translator of the data set is dropped."""
    unreachable_prompts: bool
    """Prompts that need a picture, a recording or the page behind a link are faulty."""
    min_chinese_share: Share
    """Chinese characters among those and foreign words, over the whole conversation; 0 is off. A prompt with a
    Chinese phrase makes the conversation Chinese, whatever its share."""
    min_answer_characters: Annotated[int, Field(ge=1)]
    """Characters that a whole answer must have."""
    max_characters: Annotated[int, Field(ge=1)]
    """Characters of all turns together; a longer conversation is cut behind its last whole round within."""
    exact_duplicates: bool
    """Of conversations with equal messages the first stays: sources in the order of params.yaml, then position."""
    near_duplicates: Annotated[float, Field(gt=0.5, le=1)] | None
    """Jaccard similarity of character 5-grams from which the later conversation goes; null is off."""
    contamination: Annotated[float, Field(gt=0.5, le=1)] | None
    """Share of a benchmark question's n-grams (8 Chinese or 32 other characters) that a row must hold to go; null is off."""
    traditional: Literal["keep", "convert", "drop"]
    """Conversations in traditional characters are counted and kept, converted by OpenCC, or dropped."""


class Format(Section):
    """Conversations to token rows."""

    prompt: Literal["mistral", "bos_every_turn"]
    """mistral: as Mistral's own library writes it; bos_every_turn: as the paper's framework did."""
    max_length: Annotated[int, Field(ge=16)]
    """Tokens in one row."""
    long_conversation: Literal["continue", "drop_rest"]
    """Rounds beyond max_length become a further row, or are dropped and counted."""
    long_round: Literal["drop", "truncate_prompt"]
    """A single round beyond max_length is dropped, or its prompt loses its beginning; both are counted."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of conversations kept from training, chosen by hash of the content id. Of a cluster of near duplicates
    (clean.near_duplicates) with a held-out member, the others are left out of training and counted."""


class Quantization(Section):
    """How the model is held in memory by sft and eval."""

    bits: Literal[4, 16, 32]
    """4: NF4 experts and attention; 16: bfloat16; 32: float32, both dense."""
    double_quant: bool
    """Whether the block scales are themselves quantised to 8 bits (QLoRA, arXiv 2305.14314)."""
    compute_dtype: Literal["bfloat16", "float16", "float32"]
    """Type of activations and of all tensors that are not quantised."""


class Lora(Section):
    """PEFT LoraConfig, in its own names."""

    r: Count
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0)]
    """Scale numerator; the update is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout before A."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    """Attention projections that get an adapter."""

    @field_validator("target_modules")
    @classmethod
    def _attention_alone(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = ("q_proj", "k_proj", "v_proj", "o_proj")
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{name!r} cannot get an adapter: experts stay packed in 4 bits, router and embeddings as they"
                    f" are; list some of {', '.join(known)}"
                )
        return names


class Sft(Section):
    """TRL SFTTrainer on the quantised base, in the names of SFTConfig."""

    seed: Seed
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    """Peak learning rate."""
    num_train_epochs: Annotated[float, Field(gt=0)]
    """Passes over the training rows."""
    stop_after_steps: Count | None
    """Optimiser step at which training ends, on the schedule of all epochs; null runs to the end. The paper's
    published scores are of step 3,000."""
    per_device_train_batch_size: Count
    """Rows a device and forward pass."""
    gradient_accumulation_steps: Count
    """Forward passes an optimiser step."""
    processes: Count
    """Processes, one a card, under `accelerate launch` where more than one; each holds the whole model (DDP)."""
    effective_batch_size: Count
    """Rows an optimiser step over all processes: must be the product of the three values above."""
    accelerate_config: str | None
    """File of `accelerate config` that names several machines, of which each has its own; null is this machine."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"]
    warmup_steps: Annotated[int, Field(ge=0)]
    """Optimiser steps of linear warm-up."""
    optim: Literal[
        "adamw_torch", "adamw_torch_fused", "adamw_torch_4bit", "adamw_bnb_8bit", "paged_adamw_8bit"
    ]
    """transformers' optimiser name; the paper used a 4-bit optimiser. On CPU only the fused one gives the same bytes
    on every processor."""
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Gradient norm beyond which gradients are scaled down."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Autocast type; LoRA weights stay float32 in each."""
    gradient_checkpointing: bool
    packing: bool
    """Whether TRL packs rows best-fit decreasing, documents isolated."""
    packing_length: Annotated[int, Field(ge=16)]
    """Tokens of a packed row; at least format.max_length."""
    router_aux_loss_coef: Annotated[float, Field(ge=0)]
    """Weight of Mixtral's load-balancing loss; 0 in the paper."""
    logging_steps: Count
    """Optimiser steps between points of the loss curve."""
    eval_steps: Count
    """Optimiser steps between held-out losses."""
    save_steps: Count
    """Optimiser steps between checkpoints; a multiple of logging_steps."""
    save_total_limit: Count
    """Checkpoints kept until the adapter is written; with two, a damaged one has another before it."""
    threads: Count
    """CPU threads of torch in each process; part of the recipe because sums depend on it."""
    lora: Lora

    @model_validator(mode="after")
    def _batch_and_intervals_agree(self) -> "Sft":
        apart = self.per_device_train_batch_size * self.processes
        product = apart * self.gradient_accumulation_steps
        if product != self.effective_batch_size:
            wanted, left = divmod(self.effective_batch_size, apart)
            remedy = (
                f"set gradient_accumulation_steps: {wanted}"
                if wanted and not left
                else f"make it a multiple of {apart}, or lower per_device_train_batch_size"
            )
            raise ValueError(
                f"effective_batch_size is {self.effective_batch_size}, but per_device_train_batch_size"
                f" {self.per_device_train_batch_size} x gradient_accumulation_steps {self.gradient_accumulation_steps} x"
                f" processes {self.processes} = {product}; {remedy}"
            )
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps {self.save_steps} is no multiple of logging_steps {self.logging_steps}, so a resumed run"
                f" would log other means; set it to {-(-self.save_steps // self.logging_steps) * self.logging_steps}"
            )
        return self


class Drift(Section):
    """Logits of the merged model beside those of the adapter on the base that it was trained on."""

    rows: Count
    """Held-out rows, the first of the file."""
    positions: Count
    """Positions of each row, the first of its answers; float32 logits of all of them are held in memory, twice."""
    merged_bits: Annotated[tuple[Literal[16, 4], ...], Field(min_length=1)]
    """Forms of the merged model to compare: 16 is bfloat16, run in the memory of one layer; 4 is NF4."""


class Merge(Section):
    """The adapter added to the base, and what that changes."""

    threads: Count
    """CPU threads of torch."""
    drift: Drift | None
    """null skips the measurement: where the models do not fit, merging itself needs the memory of one tensor."""


class BenchmarkParams(Section):
    """One benchmark under lm-eval."""

    num_fewshot: Annotated[int, Field(ge=0, le=5)]
    """Shots in front of each question; the first of the dev split."""
    limit: Count | None
    """Questions a subject, the first of its file; null takes all."""


class Replies(Section):
    """Greedy replies to held-out Chinese prompts."""

    prompts: Count
    """Number of held-out prompts that are answered."""
    max_new_tokens: Count
    """Tokens of a reply."""
    batch_size: Count
    """Prompts generated together."""


class Eval(Section):
    """lm-eval on the benchmarks, held-out loss, and replies."""

    tasks: Annotated[dict[Literal["ceval", "mmlu", "cmmlu"], BenchmarkParams], Field(min_length=1)]
    """Benchmarks to run; each needs a source of that format."""
    other_tasks: dict[str, BenchmarkParams] = {}
    """Further tasks or groups by lm-eval's name; their data is lm-eval's affair and not pinned here."""
    batch_tokens: Count
    """Tokens forwarded together; nothing is padded."""
    max_length: Annotated[int, Field(ge=64)]
    """Context length; a longer prompt is counted and listed."""
    chat_template: bool
    """Whether prompts are wrapped in the chat template; the paper's evaluation does not."""
    loss_rows: Count | None
    """Held-out rows on which the loss is measured; null takes all."""
    threads: Count
    """CPU threads of torch."""
    replies: Replies


class Params(Section):
    """A whole params.yaml, or a profile that replaces it."""

    sources: dict[Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_.-]*$")], Source]
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
    """Reads and checks a params file (YAML 1.2, as DVC does: `1e-4` is a number).

    Raises ParamsError with the file, the key, the value and the rule.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; restore it by: git checkout {path}") from None
    except DuplicateKeyError as error:
        key, line = error.problem.split('"')[1], error.problem_mark.line + 1
        raise ParamsError(f"{path} line {line}: {key}: the name stands twice; rename or remove one") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML ({error})") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: expected sections such as 'sft:', found {type(content).__name__}")
    try:
        return Params.model_validate_json(_json(content))
    except ValidationError as error:
        raise ParamsError(f"{path}: {describe(error)}") from None


def _json(content: dict) -> str:
    # Through JSON, since strict mode then accepts lists for tuples, and nothing else that YAML might hold.
    import json

    return json.dumps(content, default=str)


def describe(error: ValidationError) -> str:
    """One fault of a pydantic error in one line: key, rule, value; an unknown key before what it leaves missing."""
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    key = ".".join(str(part) for part in fault["loc"]) or "whole file"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        missing = [
            other["loc"][-1]
            for other in faults
            if other["type"] == "missing" and other["loc"][:-1] == fault["loc"][:-1]
        ]
        near = get_close_matches(str(fault["loc"][-1]), map(str, missing), n=1)
        remedy = f"did you mean {near[0]}?" if near else "remove it or correct its spelling"
        return f"{key}: unknown key; {remedy}{more}"
    if fault["type"] == "missing":
        return f"{key}: missing; add it (profiles/ has examples){more}"
    rule = fault["msg"].removeprefix("Value error, ")
    value = "" if fault["type"] == "value_error" else f", found {fault['input']!r}"
    return f"{key}: {rule}{value}{more}"
