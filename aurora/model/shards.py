"""Safetensors files as byte ranges: what each holds and where, from headers that are checked to the last byte."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.errors import ModelError
from aurora.model.folder import INDEX, REMEDY, SINGLE, SIZES, open_header, read_index

if TYPE_CHECKING:
    import torch

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # torch's names


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor in a file."""

    dtype: str  # in safetensors' names: BF16, F32, …
    shape: tuple[int, ...]
    begin: int  # byte in the file, counted from its start
    end: int


def read_shards(folder: Path) -> dict[str, dict[str, Place]]:
    """Tensors of each safetensors file of a model folder, by file and by name.

    Raises ModelError for a missing, truncated or damaged file, for a tensor that two files hold, and where index
    and files disagree.
    """
    listed = None
    if (folder / INDEX).is_file():
        listed = read_index(folder / INDEX)
        files = sorted(set(listed.values()))
    elif (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        raise ModelError(f"{folder}: neither {INDEX} nor {SINGLE} is there; {REMEDY} as safetensors")
    shards: dict[str, dict[str, Place]] = {}
    held: dict[str, str] = {}
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"{folder}/{file}: missing, though {INDEX} names it; {REMEDY}")
        shards[file] = read_places(folder / file)
        for name in shards[file]:
            if name in held:
                raise ModelError(f"{folder}: {name} is in {held[name]} and again in {file}; {REMEDY}")
            held[name] = file
    for name in sorted(set(listed or held) | set(held)):
        if listed is not None and listed.get(name) != held.get(name):
            where = held.get(name, "no file")
            raise ModelError(
                f"{folder}/{INDEX}: {name} is not in {listed.get(name, 'the index')} but in {where}; {REMEDY}"
            )
    return shards


def read_places(path: Path, remedy: str = REMEDY) -> dict[str, Place]:
    """Tensors of one safetensors file in the order of their bytes; raises ModelError for a file that is not whole."""
    try:
        header, start, size = open_header(path)
        places = dict(_places(header, start))
        end = max((place.end for place in places.values()), default=start)
        if end != size:
            raise ValueError(f"{size:,} bytes where the header asks for {end:,}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: truncated or damaged ({error}); {remedy}") from None
    return places


def _places(header: dict, start: int) -> Iterator[tuple[str, Place]]:
    expected = start
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (start + offset for offset in entry["data_offsets"])
        shape = tuple(entry["shape"])
        if begin != expected or end - begin != prod(shape) * SIZES[entry["dtype"]]:
            raise ValueError(f"bytes of {name} do not fit its shape and neighbours")
        expected = end
        yield name, Place(entry["dtype"], shape, begin, end)


def read_tensor(file: FileIO, place: Place) -> "torch.Tensor":
    """One tensor, in memory of its own; raises ModelError for a file that ends before."""
    import torch

    tensor = torch.empty(place.shape, dtype=getattr(torch, FLOATS[place.dtype]))
    file.seek(place.begin)
    rest = memoryview(as_bytes(tensor))
    while len(rest):
        count = file.readinto(rest)
        if not count:
            raise ModelError(f"{file.name}: ends before byte {place.end:,}; {REMEDY}")
        rest = rest[count:]
    return tensor


def as_bytes(tensor: "torch.Tensor"):
    """The bytes of a contiguous tensor as a numpy array that shares its memory."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy()
