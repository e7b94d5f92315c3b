"""Lends this process a card; to be imported before torch."""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HOOKS = Path(__file__).with_name("hooks.cpp")
BUILT = Path(__file__).parents[3] / ".aurora" / "fake_cuda"  # ignored by git
GIB = 2**30
MEMORY_GIB = 79.1  # of an H100 with 80 GB, as CUDA gives it


def _library() -> Path:
    """The compiled stub; raises RuntimeError where there is no compiler."""
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    key = hashlib.sha256(HOOKS.read_bytes() + str(torch_folder).encode()).hexdigest()[:12]
    place = BUILT / f"hooks-{key}.so"
    if place.is_file():
        return place
    if shutil.which("g++") is None:
        raise RuntimeError("g++ is not installed")
    BUILT.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(f".{os.getpid()}.partial")
    include, library = torch_folder / "include", torch_folder / "lib"
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-O1", str(HOOKS), "-o", str(partial)]
    command += [f"-I{include}", f"-I{include}/torch/csrc/api/include", f"-L{library}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    partial.replace(place)
    return place


def lend(memory_gib: float = MEMORY_GIB, capability: tuple[int, int] = (9, 0)) -> None:
    """Makes torch believe in one card with this memory; before any import of torch."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is loaded already")
    folder = Path(importlib.util.find_spec("torch").origin).parent / "lib"
    for path in [*folder.glob("libgomp*"), folder / "libc10.so", folder / "libtorch_cpu.so"]:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_library()), mode=ctypes.RTLD_GLOBAL).lend()
    # These look for CUDA's own functions as they are imported, where a card is there.
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    import trl  # noqa: F401
    from torch._subclasses.fake_tensor import FakeTensorMode

    FakeTensorMode.avoid_device_init = property(lambda self: True)
    memory = int(memory_gib * GIB)

    class Properties:
        name = "a card that is not there"
        total_memory = memory
        major, minor = capability
        multi_processor_count, gcnArchName = 132, ""

    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda *device: Properties.name,
        "get_device_properties": lambda *device: Properties,
        "get_device_capability": lambda *device: capability,
        "mem_get_info": lambda *device: (memory, memory),
        "max_memory_allocated": lambda *device: 0,
        "reset_peak_memory_stats": lambda *device: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *device: None,
        "is_bf16_supported": lambda *args, **options: True,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *device: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *state: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
