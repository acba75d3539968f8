"""What of the corpus could not be used."""

from typing import Any

import lightning as L


class SkipCounts(L.Callback):
    """Logs `data/skipped/<reason>`, recordings skipped so far, from the data module's `skips`.

    Args:
        every: batches between logs.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        skips = getattr(getattr(trainer, "datamodule", None), "skips", None)
        if skips is None or (batch_idx + 1) % self.every:
            return
        for reason, count in skips.reasons.items():
            pl_module.log(f"data/skipped/{reason.replace(' ', '_')}", float(count), reduce_fx="sum", sync_dist=True)
