"""Tensors read from the byte ranges of safetensors files."""

from io import FileIO
from typing import TYPE_CHECKING

from aurora.core.errors import ModelError
from aurora.model.folder import REMEDY, TensorInfo

if TYPE_CHECKING:
    import torch

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # torch's names


def read_tensor(file: FileIO, info: TensorInfo) -> "torch.Tensor":
    """One tensor, in memory of its own; raises ModelError for a file that ends before."""
    import torch

    tensor = torch.empty(info.shape, dtype=getattr(torch, FLOATS[info.dtype]))
    file.seek(info.begin)
    rest = memoryview(as_bytes(tensor))
    while len(rest):
        count = file.readinto(rest)
        if not count:
            raise ModelError(f"{file.name}: ends before byte {info.end:,}; {REMEDY}")
        rest = rest[count:]
    return tensor


def as_bytes(tensor: "torch.Tensor"):
    """The bytes of a contiguous tensor as a numpy array that shares its memory."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy()
