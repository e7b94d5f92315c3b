"""Peak of the bytes that live tensors hold, counted storage by storage, on any device."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it, `peak` is the most that was alive at once; tensors from before count if handed to `count`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, object] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result

    def count(self, tensors) -> None:
        """Adds storages that are not known yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.seen:
                continue
            size = storage.nbytes()

            def gone(_, key=key, size=size) -> None:
                self.now -= size
                self.seen.pop(key, None)

            self.seen[key] = weakref.ref(storage, gone)
            self.now += size
            self.peak = max(self.peak, self.now)
