"""The 32,000 pieces of Mistral v1, by sentencepiece, the reference implementation of this vocabulary.

It reads tokenizer.model itself, never turns text into a control token, and takes a quarter of the CPU time of the
tokenizers library. benchmarks/format.py compares it with what is faster still.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.declared import FETCH_BASE
from aurora.core.errors import ModelError
from aurora.core.files import read_json

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

VOCABULARY = 32_000  # pieces
BOS, EOS = 1, 2  # ids of <s>, </s>
SPECIAL_PIECES = ("<unk>", "<s>", "</s>")
VOCABULARY_SHA256 = "35c28c8df590b200c16cf9ec7a4573b3230fed9cde1bbd8d9ea57e1c4ba796fd"  # of all pieces in order, each followed by a newline
PROBE, PROBE_IDS = "a  b", [264, 28705, 287]  # shows a leading space, and runs of spaces that are kept


def sentencepiece_processor(model_file: Path) -> "SentencePieceProcessor":
    """Loads a sentencepiece model and makes sure that it is of Mistral's v1 kind.

    Raises ModelError if the file is missing, is no sentencepiece model, or has other pieces or settings.
    """
    import sentencepiece

    if not Path(model_file).is_file():
        raise ModelError(f"{model_file}: no tokeniser there; it is fetched by: dvc repro {FETCH_BASE}")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    except (RuntimeError, OSError) as error:
        raise ModelError(f"{model_file}: not a sentencepiece model ({error}); fetch the base again") from None
    pieces = all_pieces(processor)
    if tuple(pieces[:3]) != SPECIAL_PIECES or (processor.bos_id(), processor.eos_id()) != (BOS, EOS):
        raise ModelError(
            f"{model_file}: ids 0, 1, 2 are {' '.join(pieces[:3])}, but Mixtral's are {' '.join(SPECIAL_PIECES)}; "
            "give the tokenizer.model of a Mixtral base"
        )
    digest = hashlib.sha256("".join(f"{piece}\n" for piece in pieces).encode()).hexdigest()
    if digest != VOCABULARY_SHA256:
        raise ModelError(
            f"{model_file}: its {len(pieces):,} pieces (sha256 {digest[:12]}…) are not Mixtral's 32,000 "
            f"({VOCABULARY_SHA256[:12]}…); give the tokenizer.model of a Mixtral base"
        )
    if (ids := processor.encode(PROBE)) != PROBE_IDS:
        raise ModelError(
            f"{model_file}: encodes {PROBE!r} as {ids}, but Mixtral's does as {PROBE_IDS}; "
            "give the tokenizer.model of a Mixtral base"
        )
    return processor


def all_pieces(processor: "SentencePieceProcessor") -> list[str]:
    """The pieces in the order of their ids."""
    return processor.id_to_piece(list(range(processor.get_piece_size())))


def check_model(folder: Path) -> None:
    """Raises ModelError if the files of a base name another vocabulary size or other special tokens than Mixtral's.

    `folder` holds config.json and tokenizer_config.json; a file or an entry that is not there is fine.
    """
    expected = {
        "config.json": {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS},
        "tokenizer_config.json": dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL_PIECES, strict=True)),
    }
    for name, entries in expected.items():
        file = folder / name
        found = read_json(file, FETCH_BASE) if file.is_file() else {}
        for entry, value in entries.items():
            given = found.get(entry)
            if isinstance(given, dict):  # as transformers writes an AddedToken
                given = given.get("content")
            if given is not None and given != value:
                raise ModelError(
                    f"{file}: {entry} is {given!r}, but that of the tokeniser is {value!r}; "
                    "give a Mixtral base with its own tokenizer.model"
                )


def check_template(config_file: Path) -> None:
    """Raises ModelError if the tokeniser's chat template is of another family than Mistral's; none is fine."""
    if not config_file.is_file():
        return
    template = read_json(config_file, FETCH_BASE).get("chat_template")
    if template is not None and not ("[INST]" in str(template) and "[/INST]" in str(template)):
        raise ModelError(
            f"{config_file}: chat_template has no [INST] … [/INST], so it is of another model family; "
            "give a Mixtral base"
        )
