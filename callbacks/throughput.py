"""How fast a stage learns, and what the machine waits for."""

import time
from typing import Any

import lightning as L
import torch

from speechlm.batch import RowBatch

#: Dense bfloat16 operations per second, in 10^12, by what is in the name of a device (vendors' data sheets).
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H800": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H20": 148.0,
    "A800": 312.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L20": 119.5,
    "RTX 4090": 165.0,
}


class Throughput(L.Callback):
    """Logs, over the steps since the last log:

    `perf/data_wait` share of the time spent waiting for batches; `perf/step_sec`; `perf/padding_share`; on a GPU
    `perf/memory_gib`, the most that was allocated. Of batches of recordings `perf/hours_per_hour`, seconds of speech per second,
    all ranks together, and `data/hours` heard in the whole run, which a resumed run goes on counting. Of batches of rows
    `perf/tokens_per_sec_per_gpu`, padding not counted, and `perf/mfu`: the operations that learn something, as the stage counts
    them in `useful_flops`, by those that the device could do.

    Args:
        every: optimizer steps between logs.
        peak_tflops: what the device could do, in 10^12 operations a second; null is the data sheet's for known devices, and no
            `perf/mfu` for others.
    """

    def __init__(self, every: int = 10, peak_tflops: float | None = None) -> None:
        self.every, self.peak_tflops = every, peak_tflops
        self.hours = 0.0
        self._restart()
        self._left_at: float | None = None

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._waited = 0.0
        self._batches = 0
        self._whole = 0.0  # of the batches, padding included
        self._real: Any = 0.0  # seconds of audio, or ids; stays on the device, so that nothing waits for it
        self._flops: Any = 0.0

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
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, RowBatch):
            self._add_rows(pl_module, batch)
        else:
            self._real += batch.seconds
            self._whole += batch.seconds / (1.0 - batch.padding_share)
            self.hours += batch.seconds * trainer.world_size / 3600
        self._batches += 1
        if (batch_idx + 1) % (self.every * trainer.accumulate_grad_batches) == 0:
            self._log(trainer, pl_module, rows=isinstance(batch, RowBatch))
        self._left_at = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()
        self._left_at = None

    def _add_rows(self, stage: Any, batch: RowBatch) -> None:
        self._real = self._real + (batch.doc_ids >= 0).sum()
        self._whole += batch.ids.numel()
        if hasattr(stage, "useful_flops"):
            self._flops = self._flops + stage.useful_flops(batch)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, rows: bool) -> None:
        real, flops = float(self._real), float(self._flops)  # the device has done everything when these are here
        elapsed = time.perf_counter() - self._since
        values = {
            "perf/padding_share": 1.0 - real / self._whole,
            "perf/data_wait": self._waited / elapsed,
            "perf/step_sec": elapsed / self._batches * trainer.accumulate_grad_batches,
        }
        if pl_module.device.type == "cuda":
            values["perf/memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        if rows:
            values["perf/tokens_per_sec_per_gpu"] = real / elapsed
            peak = self.peak_tflops or _peak_tflops(pl_module.device)
            if peak and flops:
                values["perf/mfu"] = flops / elapsed / (peak * 1e12)
        else:
            values |= {"perf/hours_per_hour": real * trainer.world_size / elapsed, "data/hours": self.hours}
        speed = "perf/tokens_per_sec_per_gpu" if rows else "perf/hours_per_hour"
        for name, value in values.items():
            pl_module.log(name, value, prog_bar=name == speed, rank_zero_only=True)
        self._restart()


def _peak_tflops(device: torch.device) -> float | None:
    """Of a device whose name is known; the longest name that fits counts."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    fitting = [known for known in PEAK_TFLOPS if all(word in name for word in known.split())]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None
