"""What a model folder holds, read from its config and the headers of its safetensors files alone."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from aurora.core.errors import ModelError

# Bits of an element, by the names of safetensors 0.8.
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
BITS |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
BITS |= dict.fromkeys(("I32", "U32", "F32"), 32) | dict.fromkeys(("C64", "F64", "I64", "U64"), 64)
LONGEST_HEADER = 100_000_000  # bytes; safetensors refuses a longer one
MIXERS = ("mamba", "mixer")  # names of modules that read the weights of their own layers, not calling them
PACKABLE = ("F32", "F16", "BF16")
# Names in layer_types of a config: layers that attend, the first two to all tokens before.
ATTENTION_LAYERS = ("full_attention", "attention", "sliding_attention", "chunked_attention")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
REMEDY = "fetch the model again"
LINEAR_PARTS = ("absmax", "quant_map", "quant_state.bitsandbytes__nf4", "nested_absmax", "nested_quant_map")
INDEX = "model.safetensors.index.json"
# Files in which a tokeniser of Hugging Face is stored.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
SINGLE = "model.safetensors"
EXPERT = re.compile(r"(?<=experts\.)\d+")
# Conversions of transformers by which the matrices of single experts become a fused tensor, row below row.
MERGED_EXPERTS = ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])
METHOD = "aurora_nf4"  # quant_method in the config.json of a checkpoint that this project has packed


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint."""

    dtype: str  # in safetensors' names: BF16, U8, …
    shape: tuple[int, ...]
    file: str  # its name in the folder
    begin: int  # byte in the file, counted from its start
    end: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.end - self.begin


def read_config(folder: Path) -> dict:
    """config.json as a dictionary; raises ModelError if it is missing or no JSON object."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; a model folder holds one: {REMEDY}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); {REMEDY}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a JSON object; {REMEDY}")
    return config


def weight_files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """Names of the safetensors files of a model folder, and the file of each tensor if there is an index.

    Raises ModelError where there is neither a single file nor an index, and where there are both: transformers takes
    the single file, others the index.
    """
    index, single = (folder / INDEX).is_file(), (folder / SINGLE).is_file()
    if index and single:
        raise ModelError(
            f"{folder}: holds both {SINGLE} and {INDEX}, of which some readers take one and some the other;"
            " remove the one that is not the model"
        )
    if single:
        return [SINGLE], None
    if index:
        listed = read_index(folder / INDEX)
        return sorted(set(listed.values())), listed
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    found = f"only {pickles[0]}, a pickle, which is not read" if pickles else "nothing else to read"
    raise ModelError(f"{folder}: neither {SINGLE} nor {INDEX} is there, {found}; {REMEDY} as safetensors")


def read_shards(folder: Path) -> dict[str, dict[str, TensorInfo]]:
    """Tensors of each safetensors file of a model folder, by file and by name.

    Raises ModelError for a missing, truncated or damaged file, for a tensor that two files hold, and where index
    and files disagree.
    """
    folder = Path(folder)
    files, listed = weight_files(folder)
    shards: dict[str, dict[str, TensorInfo]] = {}
    held: dict[str, str] = {}
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"{folder / file}: missing, though {INDEX} names it; {REMEDY}")
        shards[file] = read_tensor_infos(folder / file)
        for name in shards[file]:
            if name in held:
                raise ModelError(f"{folder}: {name} is in {held[name]} and again in {file}; {REMEDY}")
            held[name] = file
    for name in sorted(set(listed or held) | set(held)):
        if listed is not None and listed.get(name) != held.get(name):
            where = held.get(name, "no file")
            raise ModelError(
                f"{folder / INDEX}: {name} is not in {listed.get(name, 'the index')} but in {where}; {REMEDY}"
            )
    return shards


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of the folder by name; raises as `read_shards`."""
    return {name: info for held in read_shards(folder).values() for name, info in held.items()}


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, by an index; raises ModelError for one that is none or names a file elsewhere."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)["weight_map"]
        if not listed:
            raise ValueError("weight_map names no file")
        for file in listed.values():
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError(f"weight_map names {file!r}, which is no safetensors file in the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not a safetensors index ({error}); {REMEDY}") from None
    return listed


def read_header(path: Path) -> tuple[dict, int]:
    """The header of a safetensors file without its metadata, by the order of bytes, and the byte where tensors begin.

    Every entry has a dtype of BITS, a shape and two data_offsets that fit it, and together they fill the file. Raises
    OSError for a file that cannot be read, ValueError for one that is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_once)
        except RecursionError:
            raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_entry(name, entry)
    header = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    _check_extent(header, 8 + length, size)
    return header, 8 + length


def _check_entry(name: str, entry: Any) -> None:
    try:
        begin, end = entry["data_offsets"]
        numbers = [begin, end, *entry["shape"]]
        known = entry["dtype"] in BITS
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{name} wants dtype, shape and two data_offsets") from None
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"{name} has a shape or data_offsets that are no whole numbers from 0")
    if not known:
        raise ValueError(f"{name} has the dtype {entry['dtype']}, which safetensors does not know")


def _check_extent(header: dict, start: int, size: int) -> None:
    end = 0
    for name, entry in header.items():
        begin, after = entry["data_offsets"]
        if begin != end or 8 * (after - begin) != prod(entry["shape"]) * BITS[entry["dtype"]]:
            raise ValueError(f"bytes of {name} do not fit its shape and neighbours")
        end = after
    if start + end != size:
        raise ValueError(f"has {size:,} bytes, its header says {start + end:,}")


def _once(pairs: list[tuple[str, object]]) -> dict:
    # json keeps the last of two equal keys without a word.
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands there twice")
    return result


def read_tensor_infos(path: Path, remedy: str = REMEDY) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file in the order of their bytes; raises ModelError for a file that is not whole."""
    try:
        header, start = read_header(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: truncated or damaged ({error}); {remedy}") from None
    return {
        name: TensorInfo(
            entry["dtype"], tuple(entry["shape"]), path.name, *(start + offset for offset in entry["data_offsets"])
        )
        for name, entry in header.items()
    }


def group_of(name: str) -> str:
    """The part of the model that a tensor belongs to, for any naming of transformers 4 and 5."""
    parts = name.split(".")
    if any(part in ("experts", "shared_expert", "shared_experts") for part in parts):
        return "experts"
    if any(part in ATTENTION for part in parts):
        return "attention"
    if "gate" in parts or "router" in parts:
        return "router"
    if any("norm" in part for part in parts):
        return "norms"
    if "embed_tokens" in parts:
        return "embeddings"
    return "head" if "lm_head" in parts else "other"


def refuse_foreign_quantization(folder: Path, config: dict) -> None:
    """Raises ModelError for a checkpoint that someone else has quantised."""
    settings = config.get("quantization_config")
    if settings and not isinstance(settings, dict):
        raise ModelError(f"{folder}/config.json: quantization_config is {settings!r}, not an object; {REMEDY}")
    if not settings or settings.get("quant_method") == METHOD:
        return
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        raise ModelError(
            f"{folder}: a 4-bit checkpoint of bitsandbytes (transformers 4 wrote such); transformers 5 fuses the experts"
            " and cannot read it: take the 16-bit model, it is packed while it loads"
        )
    method = settings.get("quant_method", "an unnamed method")
    raise ModelError(f"{folder}: already quantised by {method}; take the 16-bit model, it is packed while it loads")


def meta_model(folder: Path):
    """The folder's model without any memory for its weights; raises ModelError for a config that is not one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    read_config(folder)  # of a folder that is not there transformers would ask the hub
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelError(f"{folder}/config.json: no language model that loads ({reason}); {REMEDY}") from None


@dataclass(frozen=True, slots=True)
class Piece:
    """The place of a checkpoint's tensor in a tensor of the model: whole, or rows of one expert."""

    name: str  # in the checkpoint
    info: TensorInfo
    expert: int | None = None
    first_row: int = 0


def verify(folder: Path, model, packing: bool) -> dict[str, list[Piece]]:
    """The checkpoint's tensors behind each tensor of `model`; for those that transformers makes otherwise, no piece.

    Raises ModelError, naming the tensor, where the checkpoint is not exactly what `model` wants. With `packing` also
    for a matrix that NF4 cannot hold.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    if packing:
        require_packable(folder, model)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    conversions = get_model_conversion_mapping(model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    converters = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
    packed = _packed_names(model) if packing else ()
    found: dict[str, dict[str | None, dict[str, TensorInfo]]] = defaultdict(lambda: defaultdict(dict))
    ignored = re.compile("|".join([r"rotary_emb\.inv_freq$", *(model._keys_to_ignore_on_load_unexpected or ())]))
    for name, info in read_headers(folder).items():
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if target in packed and info.dtype not in PACKABLE:
            raise ModelError(f"{folder}: {name} is {info.dtype}, which NF4 cannot hold; take the 16-bit model")
        if target in wanted:
            found[target][pattern][name] = info
        elif not ignored.search(name):
            raise ModelError(f"{folder}: {name} is not a tensor of this {model.config.model_type}; {REMEDY}")
    tied = set(model.all_tied_weights_keys) if getattr(model, "all_tied_weights_keys", None) else set()
    pieces = {}
    for target, shape in wanted.items():
        if target not in found:
            if target in tied:
                continue
            raise ModelError(f"{folder}: {target} is missing; {REMEDY}")
        pieces[target] = _pieces(folder, target, shape, found[target], converters)
    return pieces


def _packed_names(model) -> set[str]:
    from aurora.model.experts import fused_tensors

    return quantised_linears(model) | {name for name, _, _ in fused_tensors(model)}


def require_packable(folder: Path, model) -> None:
    """Raises ModelError for experts that cannot be held in 4 bits: by their shape, or since they have no interface."""
    from aurora.model.experts import fused_tensors
    from aurora.model.nf4 import fits_nf4

    remedy = "set quantization.bits: 16"
    fused = {name: tuple(getattr(module, part).shape) for name, module, part in fused_tensors(model)}
    for name, shape in fused.items():
        if not fits_nf4(shape):
            raise ModelError(
                f"{folder}: {name} is {shape}, and NF4 holds experts of 64n weights with an even row; {remedy}"
            )
    for name, tensor in model.named_parameters():
        if tensor.dim() == 3 and "experts" in name.split(".") and name not in fused:
            raise ModelError(
                f"{folder}: {name} of this {model.config.model_type} is outside transformers' experts interface, so that"
                f" it cannot be packed in 4 bits; {remedy}"
            )


def _pieces(folder: Path, target: str, shape: tuple, sources: dict, converters: list) -> list[Piece]:
    if None in sources:  # one to one
        ((name, info),) = sources[None].items()
        if info.shape != shape:
            raise ModelError(f"{folder}: {name} is {info.shape}, config.json asks for {shape}; {REMEDY}")
        return [Piece(name, info)]
    converter = next(c for c in converters if any(p in sources for p in c.source_patterns))
    total, row, pieces = 0, 0, []
    for pattern in converter.source_patterns:
        infos = sources.get(pattern, {})
        if "*" in pattern:
            _verify_experts(folder, target, pattern, shape[0], infos)
        odd = next(iter(infos.values()), None)
        for name, info in infos.items():
            total += info.count
            if odd and info.shape != odd.shape:
                raise ModelError(f"{folder}: {name} is {info.shape}, its sisters {odd.shape}; {REMEDY}")
            if "*" in pattern:
                pieces.append(Piece(name, info, int(EXPERT.findall(name)[0]), row))
        row += odd.shape[0] if odd and odd.shape else 0
    if total != prod(shape):
        name, info = next(item for infos in sources.values() for item in infos.items())
        raise ModelError(
            f"{folder}: {name} is {info.shape}, which with its sisters is not {shape} of {target}; {REMEDY}"
        )
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
    return pieces if steps in MERGED_EXPERTS else []


def _verify_experts(folder: Path, target: str, pattern: str, experts: int, infos: dict[str, TensorInfo]) -> None:
    have = {int(found[0]) for name in infos if (found := EXPERT.search(name))}
    for expert in sorted(have ^ set(range(experts))):
        state = "one too many" if expert in have else "missing"
        place = f"{target} <- {pattern.strip('.').replace('*', str(expert))}"
        raise ModelError(f"{folder}: {place} is {state}; config.json asks for {experts} experts; {REMEDY}")


def is_recurrent(config) -> bool:
    """Whether some layers carry a state from token to token (Mamba, linear attention), which knows no mask."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    return any(kind not in ATTENTION_LAYERS for kind in kinds)


def has_plain_attention(config) -> bool:
    """Whether every layer sees all tokens before, so that a mask of any shape and any batching are one."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    windows = getattr(text, "sliding_window", None) is not None and not kinds
    chunks = getattr(text, "attention_chunk_size", None) is not None and not kinds
    return not (windows or chunks) and all(kind in ("full_attention", "attention") for kind in kinds)


def unquantised(model) -> list[str]:
    """Names of modules that 4 bits leave as they are: the head, and mixers that read the weights of their layers."""
    from transformers.quantizers.base import get_keys_to_not_convert

    mixers = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "A_log")}
    return [*get_keys_to_not_convert(model), *sorted(mixers & set(MIXERS))]


def quantised_linears(model) -> set[str]:
    """Names of the weights that become bitsandbytes' Linear4bit."""
    from torch import nn

    kept = unquantised(model)
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and not any(name == key or name.endswith(f".{key}") or f".{key}." in name for key in kept)
    }


def verify_packed(folder: Path, model, double_quant: bool) -> None:
    """Raises ModelError, naming the tensor, where a packed checkpoint is not exactly what `model` wants."""
    import torch

    from aurora.model.experts import fused_tensors
    from aurora.model.nf4 import PackedExperts

    names = {torch.uint8: "U8", torch.float32: "F32"}
    fused, linear = {name for name, _, _ in fused_tensors(model)}, quantised_linears(model)
    wanted: dict[str, tuple[str | None, tuple[int, ...] | None]] = {}
    for name, tensor in model.state_dict().items():
        if name in fused:
            store = PackedExperts(tuple(tensor.shape), double_quant, torch.float32, "meta")
            for part, value in store.state_dict().items():
                wanted[f"{name}.{part}"] = (names[value.dtype], tuple(value.shape))
        elif name in linear:
            wanted[name] = ("U8", ((tensor.numel() + 1) // 2, 1))
            wanted |= {f"{name}.{part}": (None, None) for part in LINEAR_PARTS[: None if double_quant else 3]}
        else:
            wanted[name] = (None, tuple(tensor.shape))
    entries, remedy = read_headers(folder), "pack the 16-bit model again"
    for tied in set(model.all_tied_weights_keys or ()) - set(entries):
        wanted.pop(tied, None)
    for name in sorted(set(wanted) ^ set(entries)):
        state = "missing" if name in wanted else f"not a tensor of this packed {model.config.model_type}"
        raise ModelError(f"{folder}: {name} is {state}; {remedy}")
    for name, (dtype, shape) in wanted.items():
        found = entries[name]
        if dtype not in (None, found.dtype) or shape not in (None, found.shape):
            raise ModelError(
                f"{folder}: {name} is {found.dtype} {found.shape}, not {dtype or found.dtype} {shape}; {remedy}"
            )
