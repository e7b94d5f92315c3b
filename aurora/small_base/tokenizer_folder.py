"""A Hugging Face tokeniser folder that gives exactly the ids of Mistral's v1 sentencepiece model."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.files import replacing, write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_PIECES = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2
CONTEXT_LENGTH = 32_768  # tokens that Mixtral was trained to attend to
NORMAL_PIECE = 1  # sentencepiece_model.proto: ModelProto.SentencePiece.Type.NORMAL

# Mistral's library encodes each turn on its own, and so puts a space before each; here the space before an
# answer is written out, because only the text behind a special token gets one from the tokeniser.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('roles must alternate, user first; turn ' ~ loop.index0 ~ ' is ' ~ message['role']) }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}"""


def write_tokenizer(model_file: Path, folder: Path) -> None:
    """Writes a Hugging Face tokeniser folder that gives exactly sentencepiece's ids.

    The files are tokenizer.model (the bytes of `model_file`), tokenizer.json, tokenizer_config.json and
    special_tokens_map.json. Load it with AutoTokenizer; it adds <s>, as Mistral does.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "tokenizer.model") as partial:
        shutil.copyfile(model_file, partial)
    write_text(folder / "tokenizer.json", fast_tokenizer(model_file).to_str(pretty=True) + "\n")
    unk, bos, eos = SPECIAL_PIECES
    special = {"bos_token": bos, "eos_token": eos, "unk_token": unk}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            **special,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT_LENGTH,
            # LlamaTokenizer rebuilds the merges in another order, and differs on runs of spaces.
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def fast_tokenizer(model_file: Path) -> "Tokenizer":
    """The same vocabulary and merges in the form of the `tokenizers` library."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(Path(model_file).read_bytes())
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL_PIECE}
    model = models.BPE(
        vocab=vocabulary, merges=merges(scores), unk_token=SPECIAL_PIECES[0], fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL_PIECES])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece out of two, best score first.

    sentencepiece joins the neighbours whose union scores best and, among equals, the leftmost;
    `tokenizers` joins those that are first in this list. Only runs of spaces have equal scores: there the
    leftmost join is the one that makes the longest beginning longer, hence the order by length.
    Only normal pieces are made: the text `<s>` must not turn into the control token of that name.
    """
    found = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, -len(left), -len(right), left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]
