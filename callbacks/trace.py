"""A trace of a few steps that a person can open: what ran when, on the processor and on the GPU."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from speechlm.files import write_text_atomic


class Trace(L.Callback):
    """Records some steps of rank 0 and leaves, in `<run>/trace/`, `step<N>.json.gz` for https://ui.perfetto.dev (or
    chrome://tracing) and `step<N>.txt`, the operations that took longest.

    Recording slows the steps it looks at down and changes nothing else.

    Args:
        at: optimizer step from which on steps are recorded; two before it are recorded and thrown away, as warm-up.
        steps: how many.
        memory: note what was allocated, too.
        stacks: note the lines of code, too; larger files.
    """

    def __init__(self, at: int = 10, steps: int = 3, memory: bool = False, stacks: bool = False) -> None:
        if at < 2 or steps < 1:
            raise ValueError(f"a trace needs at >= 2 and steps >= 1, got {at} and {steps}")
        self.at, self.steps, self.memory, self.stacks = at, steps, memory, stacks
        self._profile: profile | None = None
        self._last = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.global_step > self.at - 2:
            return
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        waiting = self.at - 2 - trainer.global_step
        self._folder = Path(trainer.default_root_dir) / "trace"
        self._profile = profile(
            activities=kinds,
            schedule=schedule(wait=waiting, warmup=2, active=self.steps, repeat=1),
            on_trace_ready=self._write,
            profile_memory=self.memory,
            with_stack=self.stacks,
        )
        self._profile.start()
        self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._profile is None or trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        self._profile.step()
        if self._last >= self.at + self.steps:
            self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._profile is not None:
            done, self._profile = self._profile, None
            done.stop()

    def _write(self, done: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        plain = self._folder / f"step{self.at}.json"
        done.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(f"{plain}.gz", "wb") as target:
            shutil.copyfileobj(source, target)
        plain.unlink()
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_text_atomic(
            self._folder / f"step{self.at}.txt", done.key_averages().table(sort_by=by, row_limit=40) + "\n"
        )
