"""What a published folder holds: files of the pipeline's outputs, and those that are written for its readers.

A published model is read by more than transformers 5: config.json gets `rope_theta` at its top, which transformers
4 and llama.cpp's relatives read; the end tokens of config, generation config and tokeniser agree; the chat template
gives the tokens of the training.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.adapter.config import CONFIG
from aurora.adapter.record import RECORD
from aurora.core.errors import DataError, ModelError
from aurora.core.files import dvc_hash, read_json
from aurora.core.manifests import find_manifest, read_origins
from aurora.core.messages import PromptName
from aurora.model.folder import TOKENIZER_FILES
from aurora.report.adapter_card import hub_id
from aurora.serving.encoding import message_encoder
from aurora.serving.places import locked_hash
from aurora.small_base.tokenizer_folder import CHAT_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CARD = "README.md"
PROVENANCE = "provenance.json"
LICENSES = ("LICENSE", "LICENSE.txt", "NOTICE")
WEIGHTS = (".safetensors", ".safetensors.index.json")
PROBE = [
    {"role": "user", "content": "你好，what is 2+2?"},
    {"role": "assistant", "content": "It is 4；是四。"},
    {"role": "user", "content": "再问 one more"},
]


@dataclass(frozen=True)
class Inputs:
    """Where the pipeline left what is published."""

    base: Path
    adapter: Path
    merged: Path
    sources: Path  # of clean
    cards: Path  # folder of metrics
    form: PromptName


@dataclass
class Contents:
    """Files of a folder by name: to be copied from elsewhere, or text."""

    copies: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        found = {name: path.stat().st_size for name, path in self.copies.items()}
        return dict(sorted((found | {name: len(text.encode()) for name, text in self.texts.items()}).items()))


def merged_contents(inputs: Inputs) -> Contents:
    """The merged model. Raises an AuroraError where a part is missing, or is not the one of dvc.lock and the card."""
    folder = inputs.merged
    _require(folder, "config.json", "merge")
    found = Contents()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.endswith((*WEIGHTS, *TOKENIZER_FILES, *LICENSES, ".json")):
            found.copies[path.name] = path
    tokenizer = _tokenizer(folder)
    _write_tokenizer_config(found, folder, tokenizer, inputs.form)
    ends = end_tokens(folder, tokenizer)
    _write_json(found, "config.json", portable_config(read_json(folder / "config.json", "merge"), ends))
    _write_json(found, "generation_config.json", generation_config(folder, tokenizer, ends))
    _describe(found, inputs, folder, "model_card.md")
    return found


def adapter_contents(inputs: Inputs) -> Contents:
    """The adapter, with the tokeniser of its base beside it. Raises as `merged_contents`."""
    folder = inputs.adapter
    _require(folder, CONFIG, "sft")
    _require(inputs.base, "config.json", "--glob 'fetch*@base'")
    found = Contents({"adapter_model.safetensors": folder / "adapter_model.safetensors"})
    if (folder / RECORD).is_file():
        found.copies[RECORD] = folder / RECORD
    for name in TOKENIZER_FILES:
        if (inputs.base / name).is_file():
            found.copies[name] = inputs.base / name
    _write_tokenizer_config(found, inputs.base, _tokenizer(inputs.base), inputs.form)
    manifest = find_manifest(inputs.base) or {}
    name = hub_id(manifest.get("uri"))
    config = read_json(folder / CONFIG, "sft")
    # Without a name on the hub PEFT loads the adapter on the base that it is given.
    config |= {"base_model_name_or_path": name, "revision": manifest.get("revision") if name else None}
    _write_json(found, CONFIG, config)
    _describe(found, inputs, folder, "adapter_card.md")
    return found


def portable_config(config: dict, ends: list[int]) -> dict:
    """config.json with `rope_theta` beside `rope_parameters`, which transformers 5 alone reads, and the end tokens."""
    rope = config.get("rope_parameters") or {}
    theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    return {**config, **theta, "eos_token_id": _one_or_all(ends)}


def generation_config(folder: Path, tokenizer: "PreTrainedTokenizerFast", ends: list[int]) -> dict:
    """generation_config.json of a folder, or a new one, that ends an answer where the training did."""
    path = folder / "generation_config.json"
    given = read_json(path, "merge") if path.is_file() else {}
    given.pop("_from_model_config", None)
    return {"bos_token_id": tokenizer.bos_token_id, **given, "eos_token_id": _one_or_all(ends)}


def end_tokens(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The token that ends an answer in the training, and what the generation config names beside it."""
    path = folder / "generation_config.json"
    given = read_json(path, "merge").get("eos_token_id") if path.is_file() else None
    others = given if isinstance(given, list) else [given]
    first = tokenizer.eos_token_id
    return [first, *(token for token in others if token not in (None, first))]


def training_template(tokenizer: "PreTrainedTokenizerFast", form: PromptName) -> str:
    """A chat template that gives the training's tokens: the tokeniser's own where it does.

    Raises ModelError where none is known.
    """
    wanted = message_encoder(tokenizer, form)(PROBE)
    every_turn = CHAT_TEMPLATE.replace("{{- bos_token }}\n", "", 1).replace("'[INST] '", "bos_token + '[INST] '")
    for template in (tokenizer.chat_template, CHAT_TEMPLATE, every_turn):
        if isinstance(template, str) and _gives(tokenizer, template, wanted):
            return template
    raise ModelError(
        f"{tokenizer.name_or_path}: no chat template of its tokeniser gives the tokens of format.prompt: {form};"
        " a reader would ask the model in another prompt than it was trained in"
    )


def _gives(tokenizer: "PreTrainedTokenizerFast", template: str, wanted: list[int]) -> bool:
    from jinja2 import TemplateError

    try:
        found = tokenizer.apply_chat_template(
            PROBE, chat_template=template, add_generation_prompt=True, return_dict=False
        )
    except (TemplateError, ValueError, TypeError):
        return False
    return found == wanted


def _write_tokenizer_config(
    found: Contents, folder: Path, tokenizer: "PreTrainedTokenizerFast", form: PromptName
) -> None:
    config = read_json(folder / "tokenizer_config.json", "merge")
    if config.get("tokenizer_class") == "TokenizersBackend":  # the name that transformers 4 does not know
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    template = training_template(tokenizer, form)
    if "chat_template.jinja" in found.copies:
        del found.copies["chat_template.jinja"]
    config["chat_template"] = template  # read by transformers 4 and 5, and by llama.cpp's converter
    _write_json(found, "tokenizer_config.json", config)


def _tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    from aurora.model.loading import load_tokenizer

    return load_tokenizer(folder)


def _describe(found: Contents, inputs: Inputs, folder: Path, card: str) -> None:
    """The card with its scores, and where all of it is from."""
    adapter_hash, model_hash = dvc_hash(inputs.adapter), dvc_hash(folder)
    locked = locked_hash(folder)
    if locked is not None and locked != model_hash:
        raise DataError(
            f"{folder}: its bytes ({model_hash}) are not those of dvc.lock ({locked}); run dvc repro, or restore it by: "
            f"dvc checkout --force {folder}"
        )
    found.texts[CARD] = read_card(inputs.cards / card, adapter_hash)
    manifest = find_manifest(inputs.base) or {}
    origins = [origin for origin in read_origins(inputs.sources) if origin["kind"] == "instructions"]
    kept = ("source", "uri", "revision", "licence", "dvc_hash")
    _write_json(
        found,
        PROVENANCE,
        {
            "dvc_hash": model_hash,
            "adapter": adapter_hash,
            "base": {name: manifest.get(name) for name in ("uri", "revision", "licence")},
            "data": [{name: origin[name] for name in kept} for origin in origins],
        },
    )


def read_card(path: Path, adapter_hash: str) -> str:
    """A card of the report. Raises DataError for one that is missing, has no licence, or describes another adapter."""
    from huggingface_hub import ModelCard

    if not path.is_file():
        raise DataError(f"{path}: not found; it is written by: dvc repro report")
    text = path.read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=True).data
    names = str(card.get("license_name") or "").split(" and ")
    if not card.get("license") or "unknown" in names:
        raise DataError(
            f"{path}: the licence of the base or of a source is unknown; state it under `licence` in params.yaml, and"
            " run dvc repro"
        )
    if adapter_hash not in text:
        raise DataError(f"{path}: describes another adapter than {adapter_hash}; run dvc repro report")
    return text


def _require(folder: Path, name: str, producer: str) -> None:
    if not (folder / name).is_file():
        raise ModelError(f"{folder / name}: not found; it is written by: dvc repro {producer}")


def _one_or_all(ends: list[int]) -> int | list[int]:
    return ends[0] if len(ends) == 1 else ends


def _write_json(found: Contents, name: str, content: Mapping) -> None:
    found.copies.pop(name, None)
    found.texts[name] = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
