"""A cache of keys and values for replies on a card, in which a new token costs one copy of its own."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOM = 64  # tokens a row for which a layer has room ahead


class RoomyLayer(DynamicLayer):
    """Keys and values in one tensor (2, B x heads, tokens and room, d); DynamicLayer copies all of both each time."""

    _room: torch.Tensor | None = None
    _keys: torch.Tensor | None = None  # the view of _room that `keys` is, until someone cuts or picks from it

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As DynamicLayer's: keys and values (B, heads, T, d) of all tokens so far."""
        if key_states.shape != value_states.shape:
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, heads, new, size = key_states.shape
        old = self.get_seq_length()
        if self._room is None or self.keys is not self._keys or self._room.shape[2] < old + new:
            self._room = key_states.new_empty(2, batch * heads, old + new + ROOM, size)
            if old:
                _write(self._room[:, :, :old], self.keys, self.values)
        _write(self._room[:, :, old : old + new], key_states, value_states)
        self.keys, self.values = self._room[:, :, : old + new].unflatten(1, (batch, heads))
        self._keys = self.keys
        return self.keys, self.values


def _write(place: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    torch.cat([tensor.reshape(1, *place.shape[1:]) for tensor in (keys, values)], out=place)


def reply_cache(model: "PreTrainedModel", like: DynamicCache) -> DynamicCache:
    """`like`, a new cache, for the device of `model`: on a card its layers have room, but for those of a window."""
    if model.device.type == "cuda":
        like.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in like.layers]
        if like.layer_class_to_replicate is DynamicLayer:
            like.layer_class_to_replicate = RoomyLayer
    return like
