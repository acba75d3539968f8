"""Ranks that keep all others waiting, by name."""

import logging
import statistics
import time
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

log = logging.getLogger(__name__)
PARTS = ("data", "forward", "probe")


class StragglerReport(L.Callback):
    """Names ranks that are slower than the others, every `every` batches, and goes on.

    All ranks need the same time for a step, for they wait for each other; what tells them apart is what they do before they
    meet: waiting for data, the forward pass, and a probe, a small product of matrices that every rank computes by itself. Under
    FSDP ranks meet within the forward pass, and data and probe are what counts. Logs `perf/slowest_share`, how many times the
    time of the median rank the slowest one took.

    Args:
        every: batches between reports.
        factor: how many times the time of the others makes a rank a straggler.
        min_sec: differences below are noise.

    Raises:
        ValueError: a number that reports nothing or everything.
    """

    def __init__(self, every: int = 50, factor: float = 1.5, min_sec: float = 0.002) -> None:
        if every < 1 or factor <= 1:
            raise ValueError(f"every >= 1 and factor > 1 must hold, got {every} and {factor}")
        self.every, self.factor, self.min_sec = every, factor, min_sec
        self._restart()

    def _restart(self) -> None:
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[Any, Any]] = []
        self._batches = 0
        self._left_at: float | None = None
        self._begun: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()
        size = 1024 if pl_module.device.type == "cuda" else 128
        self._matrix = torch.full((size, size), 1 / size, device=pl_module.device)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._left_at = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._left_at is not None:
            self._spent["data"] += time.perf_counter() - self._left_at
        self._begun = self._mark()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self._begun is not None:  # several losses of a batch count once
            self._events.append((self._begun, self._mark()))
            self._begun = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if self._batches >= self.every:
            self._report(trainer, pl_module)
            self._restart()
        self._left_at = time.perf_counter()

    def _mark(self) -> Any:
        """A moment: of the device, where it computes on its own."""
        if self._matrix.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        table = self._gathered()
        for part, column in zip(PARTS, zip(*table, strict=True), strict=True):
            for rank, own in enumerate(column):
                usual = statistics.median([*column[:rank], *column[rank + 1 :]] or [own])
                if own > self.factor * usual and own - usual > self.min_sec:
                    log.warning(
                        "rank %d is a straggler at step %d: %s takes it %.4f s a batch, the others %.4f s",
                        rank, trainer.global_step, part, own, usual,
                    )  # fmt: skip
        totals = [sum(row) for row in table]
        pl_module.log("perf/slowest_share", max(totals) / statistics.median(totals), rank_zero_only=True)

    def _gathered(self) -> list[list[float]]:
        """Seconds per batch of each part, of every rank."""
        self._spent["probe"] = self._probe() * self._batches
        self._spent["forward"] = sum(self._seconds(*pair) for pair in self._events)
        own = torch.tensor([self._spent[part] / self._batches for part in PARTS], device=self._matrix.device)
        if not (dist.is_available() and dist.is_initialized()):
            return [own.tolist()]
        rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, own)
        return [row.tolist() for row in rows]

    def _probe(self) -> float:
        """Seconds of a small product of matrices; the best of three, so that chance is left out."""
        times = []
        for _ in range(3):
            begin = self._mark()
            for _ in range(4):
                self._matrix @ self._matrix
            end = self._mark()
            if self._matrix.device.type == "cuda":
                torch.cuda.synchronize(self._matrix.device)
            times.append(self._seconds(begin, end))
        return min(times)
