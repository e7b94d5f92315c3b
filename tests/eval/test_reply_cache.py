"""A cache with room gives what transformers' own gives, token by token, also after rows have left it."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from aurora.eval.reply_cache import ROOM, RoomyLayer


def test_keys_and_values_are_those_of_a_dynamic_layer_after_growth_cuts_and_picks():
    torch.manual_seed(0)
    plain, roomy = (DynamicCache() for _ in range(2))
    plain.layer_class_to_replicate, roomy.layer_class_to_replicate = DynamicLayer, RoomyLayer
    rows = 3
    for step in range(2 * ROOM + 9):
        new = torch.randn(2, rows, 4, 5 if step == 0 else 1, 8)
        for one, two in zip(plain.update(*new, 0), roomy.update(*new, 0), strict=True):
            assert torch.equal(one, two)
        room = roomy.layers[0]._room
        if step == 20:
            for cache in (plain, roomy):
                cache.batch_select_indices(torch.tensor([0, 2]))
            rows = 2
        elif step == 30:
            for cache in (plain, roomy):
                cache.crop(-3)
        assert roomy.get_seq_length() == plain.get_seq_length()
    assert roomy.layers[0].keys.untyped_storage().data_ptr() == room.untyped_storage().data_ptr()
