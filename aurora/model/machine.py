"""The device that computes: its name, its memory, what it has used."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """A card, or this computer without one."""

    name: str
    cards: int  # 0 on a CPU
    memory: int  # bytes that can be allocated now, on one card or for all processes on the CPU

    def peak_bytes(self) -> int:
        """Most bytes that this process has held so far, on its card or in memory."""
        if self.cards:
            import torch

            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kernels() -> str:
    """The device with what decides how its kernels round: a card's model, or a CPU's vector instructions."""
    import torch

    found = machine()
    return found.name if found.cards else f"{found.name} {torch.backends.cpu.get_cpu_capability()}"


def machine() -> Machine:
    """What this process computes on."""
    import torch

    device = default_device()
    memory = free_memory(device) or 2**62
    if device == "cpu":
        return Machine("cpu", 0, memory)
    return Machine(torch.cuda.get_device_name(device), torch.cuda.device_count(), memory)


def default_device() -> str:
    """This process's card under `accelerate launch`, the first card otherwise, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def card_memory(device: "str | torch.device") -> int | None:
    """Bytes of the whole memory of a card, free or not; None for a CPU."""
    import torch

    device = torch.device(device)
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def free_memory(device: str) -> int | None:
    """Bytes that can still be allocated on a device, as far as it can be known."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(torch.device(device))[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
