"""How fast speech is being learnt from, and what the machine waits for."""

import time
from typing import Any

import lightning as L

from speechlm.batch import AudioBatch


class Throughput(L.Callback):
    """Logs, over the steps since the last log:

    `perf/hours_per_hour` seconds of speech per second, all ranks together; `perf/padding_share` of the audio;
    `perf/data_wait` share of the time spent waiting for batches; `perf/step_sec`; and `data/hours` of speech heard in the whole
    run, which a resumed run goes on counting.

    Args:
        every: optimizer steps between logs.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.hours = 0.0
        self._restart()
        self._left_at: float | None = None

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._seconds = self._padded = self._waited = 0.0
        self._batches = 0

    def state_dict(self) -> dict[str, float]:
        return {"hours": self.hours}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.hours = state_dict["hours"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()
        self._left_at = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._left_at is not None:
            self._waited += time.perf_counter() - self._left_at

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: AudioBatch, batch_idx: int
    ) -> None:
        self._seconds += batch.seconds
        self._padded += batch.seconds / (1.0 - batch.padding_share)
        self._batches += 1
        self.hours += batch.seconds * trainer.world_size / 3600
        if (batch_idx + 1) % (self.every * trainer.accumulate_grad_batches) == 0:
            self._log(trainer, pl_module)
        self._left_at = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()
        self._left_at = None

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        elapsed = time.perf_counter() - self._since
        values = {
            "perf/hours_per_hour": self._seconds * trainer.world_size / elapsed,
            "perf/padding_share": 1.0 - self._seconds / self._padded,
            "perf/data_wait": self._waited / elapsed,
            "perf/step_sec": elapsed / self._batches * trainer.accumulate_grad_batches,
            "data/hours": self.hours,
        }
        for name, value in values.items():
            pl_module.log(name, value, prog_bar=name == "perf/hours_per_hour", rank_zero_only=True)
        self._restart()
