"""A Llama in a GGUF file: its shape, its tensors in Hugging Face's names and order, and its vocabulary.

Reference: the GGUF specification and convert_hf_to_gguf.py of llama.cpp, whose `gguf` package reads and dequantises.
"""

from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aurora.core.errors import ModelError

if TYPE_CHECKING:
    import numpy

REMEDY = "give a GGUF file of a dense Llama"
LAYER = "blk.{}."
MLP = ("ffn_gate", "ffn_up", "ffn_down")
# Rotations of a layer's positions other than Llama's own would be lost, and the model with them.
UNKNOWN = ("rope.scaling.type", "rope.scale_linear", "attention.sliding_window", "expert_count")


class LlamaFile:
    """An open GGUF file of architecture `llama`. Raises ModelError, in one line, for any other."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self.reader = GGUFReader(path)
        except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise ModelError(f"{path.name}: no GGUF file that can be read ({error}); {REMEDY}") from None
        architecture = self.get("general.architecture")
        if architecture != "llama":
            raise ModelError(f"{path.name}: general.architecture is {architecture!r}, not 'llama'; {REMEDY}")
        for key in UNKNOWN:
            if (value := self.get(f"llama.{key}")) not in (None, 0, "none"):
                raise ModelError(f"{path.name}: llama.{key} is {value!r}, which a Mixtral lacks; {REMEDY}")
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        head = self.config["head_dim"]
        if self.get("llama.rope.dimension_count", head) != head:
            raise ModelError(
                f"{path.name}: llama.rope.dimension_count is {self.get('llama.rope.dimension_count')!r}, and a Mixtral"
                f" rotates all {head} dimensions of a head; {REMEDY}"
            )
        self._check_shapes()

    def get(self, key: str, default: object = None) -> Any:
        """A value of the file's metadata."""
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of the metadata."""
        value = self.number(key, default)
        if not isinstance(value, int):
            raise ModelError(f"{self.path.name}: {key} is {value!r}, where a whole number is needed; {REMEDY}")
        return value

    def token(self, key: str) -> int | None:
        """The id of a token that the metadata name, or None."""
        value = self.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < len(self.vocabulary)):
            raise ModelError(
                f"{self.path.name}: {key} is {value!r}, and there are {len(self.vocabulary)} tokens; {REMEDY}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number of the metadata, which is one for all layers."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            said = "differs from layer to layer" if isinstance(value, list) else f"is {value!r}"
            raise ModelError(f"{self.path.name}: {key} {said}, where one number above 0 is needed; {REMEDY}")
        return value

    @cached_property
    def config(self) -> dict:
        """The shape, in the names of MixtralConfig."""
        count, number = self.count, self.number
        heads, hidden = count("llama.attention.head_count"), count("llama.embedding_length")
        if hidden % heads:
            raise ModelError(f"{self.path.name}: {hidden} dimensions for {heads} heads; {REMEDY}")
        return {
            "vocab_size": len(self.vocabulary),
            "hidden_size": hidden,
            "intermediate_size": count("llama.feed_forward_length"),
            "num_hidden_layers": count("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": count("llama.attention.head_count_kv", heads),
            "head_dim": count("llama.attention.key_length", hidden // heads),
            "max_position_embeddings": count("llama.context_length"),
            "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon"),
            "rope_parameters": {"rope_type": "default", "rope_theta": number("llama.rope.freq_base", 10_000.0)},
            "bos_token_id": self.token("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.token("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.token("tokenizer.ggml.padding_token_id"),
            "tie_word_embeddings": "output.weight" not in self.tensors,
        }

    @cached_property
    def vocabulary(self) -> list[str]:
        """Tokens in the order of their ids."""
        tokens = self.get("tokenizer.ggml.tokens")
        if not tokens or not isinstance(tokens, list):
            raise ModelError(f"{self.path.name}: tokenizer.ggml.tokens is missing; {REMEDY}")
        return tokens

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the config asks for, by its name in the file, as (rows, columns)."""
        config = self.config
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
        layer = {
            "attn_norm": (hidden,),
            "attn_q": (queries, hidden),
            "attn_k": (keys, hidden),
            "attn_v": (keys, hidden),
            "attn_output": (hidden, queries),
            "ffn_norm": (hidden,),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        outer = {"token_embd": (config["vocab_size"], hidden), "output_norm": (hidden,)}
        if not config["tie_word_embeddings"]:
            outer["output"] = outer["token_embd"]
        for number in range(config["num_hidden_layers"]):
            outer |= {LAYER.format(number) + part: shape for part, shape in layer.items()}
        return {f"{name}.weight": shape for name, shape in outer.items()}

    def _check_shapes(self) -> None:
        wanted = self.shapes()
        for name in sorted(wanted.keys() ^ self.tensors.keys()):
            state = "is missing" if name in wanted else "is none of a Llama's that a Mixtral has"
            raise ModelError(f"{self.path.name}: {name} {state}; {REMEDY}")
        for name, shape in wanted.items():
            found = tuple(int(size) for size in reversed(self.tensors[name].shape))
            if found != shape:
                raise ModelError(
                    f"{self.path.name}: {name} is {found}, its metadata ask for {shape}; it cannot be upcycled: {REMEDY}"
                )

    def read(self, name: str) -> "numpy.ndarray":
        """A tensor in float32, rows of queries and keys in Hugging Face's order. Raises ModelError."""
        from gguf import dequantize

        tensor = self.tensors[f"{name}.weight"]
        try:
            weight = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ModelError(f"{self.path.name}: {name} cannot be dequantised ({error}); {REMEDY}") from None
        weight = weight.reshape(self.shapes()[f"{name}.weight"])
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-1])
        if heads is None:
            return weight
        # llama.cpp turns neighbouring rows about each other, transformers rows that are half a head apart.
        count = self.config[heads]
        pairs = weight.reshape(count, prod(weight.shape) // weight.shape[1] // count // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(weight.shape)
