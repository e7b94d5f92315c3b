"""The device that computes: its name, its memory, what it has used."""

import resource
from dataclasses import dataclass

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

    from aurora.model import default_device, free_memory

    device = default_device()
    if device == "cpu":
        return Machine("cpu", 0, free_memory(device) or 2**62)
    return Machine(torch.cuda.get_device_name(device), torch.cuda.device_count(), free_memory(device))
