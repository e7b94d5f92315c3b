"""The embedded base of the small profile: a real Mixtral that answers Chinese in English, as the paper's did.

A `MixtralForCausalLM` (8 experts, 2 a token, grouped-query attention) with Mistral's own 32,000-piece v1 vocabulary.
It knows the little world of miniature/ in Chinese and English, and answers Chinese prompts in English or a mixture.
There Mixtral-8x7B-Instruct stood before Aurora (arXiv 2312.14557, Table 1). `python -m miniature.train` made its
weights, which are in this folder: with rows of the embedding and the head for the tokens of that world alone.
"""

import hashlib
import shutil
from pathlib import Path

import safetensors.torch
import torch

from aurora.core.errors import SourceError
from aurora.core.files import write_json
from aurora.small_base.tokenizer_folder import write_tokenizer

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.safetensors"
SHA256 = "4bfbed07d9245a347fc118951ba6e668b72ebc9c4280d6085b6f9e15ed43587b"
VOCABULARY = 32_000  # pieces of Mistral v1
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS, OTHERS = "tokens", "others"  # ids that have a row of their own; head row of all other tokens
SHARD_BYTES = 8_000_000  # several shards, as a large model has


def build(folder: Path) -> None:
    """Writes the model, its tokeniser and its configuration as a Hugging Face folder (bfloat16, sharded).

    Raises SourceError if the weights in the repository are not those that are pinned here.
    """
    import mistral_common

    content = WEIGHTS.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise SourceError(
            f"{WEIGHTS.name}: expected sha256 {SHA256}, found {found}; restore it by: git checkout aurora/small_base"
        )
    tensors = safetensors.torch.load(content)
    tokens, others = tensors.pop(TOKENS), tensors.pop(OTHERS)
    for name, other in ((EMBEDDING, torch.zeros_like(others)), (HEAD, others)):
        table = other.repeat(VOCABULARY, 1)
        table[tokens] = tensors[name]
        tensors[name] = table
    folder.mkdir(parents=True)
    vocabulary = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    write_tokenizer(vocabulary, folder)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(HERE / name, folder / name)
    _write_shards(folder, tensors)


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes safetensors files of at most SHARD_BYTES, or one tensor, and their index, in Hugging Face's names."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name in sorted(tensors):
        if shards[-1] and sum(tensor.nbytes for tensor in shards[-1].values()) + tensors[name].nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensors[name]
    index = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors.torch.save_file(shard, folder / file, {"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
