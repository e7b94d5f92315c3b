"""The byte-level vocabulary and the chat template of a GGUF file, as a Hugging Face tokeniser folder.

How text is cut before merges is not in the file but named there; transformers' own reader of GGUF takes GPT-2's cut
for all, which gives other ids to numbers.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import ModelError
from aurora.core.files import write_json, write_text
from aurora.upcycled_base.llama_file import LlamaFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL = 3  # gguf.TokenType.CONTROL
# By the name of the cut, whether each digit is a word of its own (llama.cpp: llm_tokenizer_bpe).
CUTS = {"gpt-2": False, "smollm": True}
REMEDY = f"give a file with a byte-level vocabulary, cut as one of {', '.join(CUTS)}"


def write_tokenizer(llama: LlamaFile, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, the chat template in it. Raises ModelError."""
    tokenizer, special = fast_tokenizer(llama), special_tokens(llama)
    template = llama.get("tokenizer.chat_template")
    if not template:
        raise ModelError(f"{llama.path.name}: no tokenizer.chat_template; give the file of a model that chats")
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "model_max_length": llama.config["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def special_tokens(llama: LlamaFile) -> dict[str, str]:
    """bos, eos, unk and pad token, as far as the file names them. Raises ModelError without an end."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {
        f"{name}_token": llama.vocabulary[index]
        for name, key in names.items()
        if (index := llama.token(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    if "eos_token" not in found:
        raise ModelError(f"{llama.path.name}: tokenizer.ggml.eos_token_id is missing; replies would not end")
    return found


def fast_tokenizer(llama: LlamaFile) -> "Tokenizer":
    """The vocabulary in the form of the `tokenizers` library; nothing is put in front of or behind a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, cut = llama.get("tokenizer.ggml.model"), llama.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or cut not in CUTS:
        raise ModelError(
            f"{llama.path.name}: its vocabulary is of kind {kind!r}, cut as {cut!r}, which is not known; {REMEDY}"
        )
    vocabulary = {token: index for index, token in enumerate(llama.vocabulary)}
    merges = [tuple(merge.split(" ")) for merge in llama.get("tokenizer.ggml.merges", [])]
    types = llama.get("tokenizer.ggml.token_type", [])
    if types and len(types) != len(llama.vocabulary):
        raise ModelError(
            f"{llama.path.name}: tokenizer.ggml.token_type has {len(types)} entries for {len(llama.vocabulary)} tokens;"
            f" {REMEDY}"
        )
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # tokenizers raises no narrower one
        raise ModelError(f"{llama.path.name}: tokenizer.ggml.merges: {error}; {REMEDY}") from None
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if CUTS[cut] else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(llama.vocabulary, types, strict=False) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer
