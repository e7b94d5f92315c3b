"""The processes that share one evaluation, each with the whole model on a card of its own."""

import os
from collections.abc import Mapping
from datetime import timedelta

WAIT = timedelta(days=7)  # for the slowest; a process that dies ends all others


class Group:
    """This process among `size`, which call `gather` in the same order."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.size > 1:
            from torch.distributed import init_process_group, is_initialized

            if not is_initialized():
                init_process_group("gloo", timeout=WAIT)

    def gather(self, values: dict[int, bytes]) -> dict[int, bytes]:
        """The values of all processes together."""
        if self.size == 1:
            return values
        from torch.distributed import all_gather_object

        found: list[dict[int, bytes]] = [{}] * self.size
        all_gather_object(found, values)
        return {key: value for part in found for key, value in part.items()}

    def share(self, costs: Mapping[int, int]) -> list[int]:
        """The numbers of this process's work: neighbours, which have most in common, of about equal cost."""
        total, before, mine = sum(costs.values()) or 1, 0, []
        for number, cost in costs.items():
            if (2 * before + cost) * self.size // (2 * total) == self.rank:  # by the middle of each
                mine.append(number)
            before += cost
        return mine
