"""The packed form of a fetched base, kept so that later loads read a quarter: sft, its resumption and eval share it.

A stage's outputs do not depend on it, for a packed checkpoint is bit-identical; so it is no output of a stage but
lies below .aurora, which git and DVC ignore and `make clean` removes. One copy is kept for each model folder.
"""

import hashlib
import json
import os
import shutil
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from aurora.core.code import code_hash
from aurora.core.files import remove, sha256_file
from aurora.core.locks import LockedError, locked
from aurora.core.manifests import MANIFEST
from aurora.model.folder import read_config
from aurora.model.quantization import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHE = Path(".aurora/packed")
WORTH = 4 * 2**30  # bytes of checkpoint below which reading it again costs less than keeping a copy
SPARE = 10 * 2**30  # bytes of disk that are left free
VERSIONS = ("torch", "transformers", "bitsandbytes", "safetensors")


def place_of(folder: Path, quantization: Quantization, device: str) -> Path | None:
    """The path of the packed form of `folder`, written or not; None where none is kept.

    Only a fetched folder has one: its manifest names the SHA-256 of every file, and size, time of change and inode
    tell that the files are still those which the packed form was made from. Bits 16 and 32, small models, packed
    ones, merged ones (read once) and folders that their manifest does not describe have none.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if quantization.bits != 4 or not manifest.is_file() or read_config(folder).get("quantization_config"):
        return None
    try:
        listed = {file["path"]: file["bytes"] for file in json.loads(manifest.read_bytes())["files"]}
        found = {path.relative_to(folder).as_posix(): path.stat() for path in sorted(folder.rglob("*"))}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = {name: state for name, state in found.items() if name in listed or name.endswith(".safetensors")}
    if {name: state.st_size for name, state in found.items()} != listed or sum(listed.values()) < WORTH:
        return None
    parts = {
        "manifest": sha256_file(manifest),
        "files": [[name, state.st_size, state.st_mtime_ns, state.st_ino] for name, state in found.items()],
        "quantization": quantization.model_dump(),
        "device": device.partition(":")[0],  # kernels of a card may round otherwise than those of a CPU
        "versions": [version(name) for name in VERSIONS],
        "code": code_hash("aurora/model"),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return CACHE / f"{folder.name}-{key}"


def keep(model: "PreTrainedModel", place: Path) -> None:
    """Writes the packed form to `place`, whole or not at all, and removes what it supersedes.

    Does nothing on any process but the first, beside another that is writing, or where the disk would get full or
    cannot be written; the last two are said on stderr.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    with suppress(LockedError), locked(place.parent / ".lock"):
        _keep(model, place)


def _keep(model: "PreTrainedModel", place: Path) -> None:
    from aurora.model.packing import save_packed

    if place.is_dir():
        return
    stem = place.name.rpartition("-")[0]
    for old in [*place.parent.glob(f"{stem}-*"), *place.parent.glob(f".{stem}-*.partial")]:
        remove(old)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    free = shutil.disk_usage(place.parent).free
    if needed + SPARE > free:
        print(
            f"{place}: no packed copy kept: {needed / 2**30:.1f} GiB and {SPARE / 2**30:.0f} GiB to spare are more"
            f" than the {free / 2**30:.1f} GiB free; the next load reads the whole model again",
            file=sys.stderr,
        )
        return
    try:
        save_packed(model, place)
    except (OSError, SafetensorError) as error:  # the stage can do without
        print(f"{place}: no packed copy kept ({error})", file=sys.stderr)
        return
    print(f"{place}: packed copy kept, {needed / 2**30:.1f} GiB; later loads read it", file=sys.stderr)
