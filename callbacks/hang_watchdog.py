"""A run that makes no progress is ended, after every rank has written where it stands."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import lightning as L

STACKS = "stacks"


class HangWatchdog(L.Callback):
    """Ends the process if no batch begins or ends for `timeout_sec`, so that the job is started again instead of standing still.

    A rank that hangs makes all others wait for it, so the watchdogs of all ranks go off together; each writes the stacks of all
    its threads to `<run>/stacks/rank-00003.txt`, and then says who wrote none: that process was stopped, or its machine is gone.
    Exit is `grace_sec` later, by a timer in C (`faulthandler`), which does not need the interpreter: a call that never lets go
    of its lock is written down and ended too.

    Args:
        timeout_sec: longest time between two signs of life: longer than the longest step, validation batch or checkpoint.
        first_timeout_sec: the same until the first batch is over, which compiles and fills caches.
        grace_sec: for all ranks to write before the first one is gone.
        start_timeout_sec: for all ranks to find each other; a rank that never comes ends the others after it.

    Raises:
        ValueError: a time that is not positive.
    """

    def __init__(
        self,
        timeout_sec: float = 600.0,
        first_timeout_sec: float = 1800.0,
        grace_sec: float = 10.0,
        start_timeout_sec: float = 300.0,
    ) -> None:
        if min(timeout_sec, first_timeout_sec, grace_sec, start_timeout_sec) <= 0:
            raise ValueError(
                f"times must be positive, got {timeout_sec}, {first_timeout_sec}, {grace_sec} and {start_timeout_sec}"
            )
        self.start_timeout_sec = start_timeout_sec
        self.timeout_sec, self.first_timeout_sec, self.grace_sec = timeout_sec, first_timeout_sec, grace_sec
        self._limit = first_timeout_sec
        self._file: IO[str] | None = None
        self._over: threading.Event | None = None

    # -- signs of life -------------------------------------------------------------------------------------------------

    def before_launch(self) -> None:
        """Called before the ranks look for each other; `setup` is when they have."""
        own = sys.__stderr__ or 2  # the process's, whatever sys.stderr is by now
        faulthandler.dump_traceback_later(self.start_timeout_sec, file=own, exit=True)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        faulthandler.cancel_dump_traceback_later()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(Path(trainer.default_root_dir) / STACKS, trainer.global_rank, trainer.world_size)
        self._beat(trainer, "starting")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._beat(trainer, "in a training batch")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._limit = self.timeout_sec
        self._beat(trainer, "behind a training batch")

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._beat(trainer, "in a validation batch")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._beat(trainer, "behind a validation batch")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._beat(trainer, "saving a checkpoint")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    # -- the watch -----------------------------------------------------------------------------------------------------

    def _start(self, folder: Path, rank: int, world_size: int) -> None:
        self._stop()
        self.folder, self.rank, self.world_size = folder, rank, world_size
        folder.mkdir(parents=True, exist_ok=True)
        path = _path(folder, rank)
        if path.exists() and _has_stacks(path):  # of the start before, which ended so
            path.replace(path.with_suffix(f".{int(path.stat().st_mtime)}.txt"))
        self._file = open(path, "w+", encoding="utf-8")  # noqa: SIM115 - the timer in C writes to it for as long as it runs
        self._place, self._at, self._armed_at = "", time.monotonic(), 0.0
        self._over = threading.Event()
        threading.Thread(target=self._watch, args=(self._over,), name="hang watchdog", daemon=True).start()

    def _beat(self, trainer: L.Trainer, place: str) -> None:
        if self._file is None:
            return
        self._place, self._at = f"step {trainer.global_step}, {place}", time.monotonic()
        if self._at - self._armed_at > self._limit / 50:  # arming takes a tenth of a millisecond
            self._armed_at = self._at
            self._write_header()
            seconds = self._limit * 1.02 + self.grace_sec
            faulthandler.dump_traceback_later(seconds, file=self._file, exit=True)

    def _stop(self) -> None:
        if self._file is None or self._over is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._over.set()
        self._file.close()
        self._file = None

    def _write_header(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"rank {self.rank} of {self.world_size}, process {os.getpid()}, {self._place}\n")
        self._file.flush()

    def _watch(self, over: threading.Event) -> None:
        """Runs on a thread of its own: says what the timer, which will end the process, can not."""
        while not over.wait(min(self._limit, self.timeout_sec) / 50):
            still = time.monotonic() - self._at
            if still <= self._limit:
                continue
            with contextlib.suppress(ValueError, OSError):  # the run ended just now
                self._write_header()
                faulthandler.dump_traceback(self._file, all_threads=True)  # type: ignore[arg-type]
                self._say(
                    f"rank {self.rank} made no progress for {still:.0f} s ({self._place}); stacks in {self.folder}"
                )
            over.wait(self.grace_sec / 2)
            self._say(self._who_is_missing())
            return

    def _who_is_missing(self) -> str:
        silent = [r for r in range(self.world_size) if not _has_stacks(_path(self.folder, r))]
        if not silent:
            return "every rank wrote its stacks; the one that is not waiting for the others is the one that hangs"
        return f"no stacks from rank {', '.join(map(str, silent))}: stopped, or its machine is gone"

    def _say(self, text: str) -> None:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"hang watchdog: {text}\n".encode())


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.txt"


def _has_stacks(path: Path) -> bool:
    return path.is_file() and "most recent call first" in path.read_text(encoding="utf-8", errors="replace")
