"""Safetensors files as byte ranges: what each holds and where, from headers that are checked to the last byte."""

from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import ModelError
from aurora.model.folder import INDEX, REMEDY, read_header, weight_files

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
    files, listed = weight_files(folder)
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
        header, start = read_header(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: truncated or damaged ({error}); {remedy}") from None
    places = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        places[name] = Place(entry["dtype"], tuple(entry["shape"]), begin, end)
    return places


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
