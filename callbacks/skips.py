"""What of the corpus could not be used."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch.distributed as dist


class SkipCounts(L.Callback):
    """Logs `data/skipped/<reason>`, recordings skipped so far by all ranks, from the data module's `skipped`.

    Args:
        every: batches between logs.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counts of all ranks together."""
        skipped = getattr(getattr(trainer, "datamodule", None), "skipped", None)
        if skipped is None or (batch_idx + 1) % self.every:
            return
        for reason, count in sum_over_ranks(skipped).items():
            pl_module.log(f"data/skipped/{reason.replace(' ', '_')}", float(count), rank_zero_only=True)


def sum_over_ranks(counts: Mapping[str, int]) -> Counter[str]:
    """Counts by name, added up over the ranks, each of which may know other names; called by all of them at once."""
    if not dist.is_available() or not dist.is_initialized():
        return Counter(counts)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, dict(counts))
    return sum((Counter(one) for one in gathered), Counter())
