"""A run that is told to stop saves at the next step, asks Slurm to start it again, and ends with a code that says so."""

import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist

from callbacks.checkpoint import Checkpoints

log = logging.getLogger(__name__)
AGAIN_SEC = 5.0  # a launcher and Slurm may both pass on the same signal; later than this it is meant


class Preemption(L.Callback):
    """Ends a run on SIGUSR1 or SIGTERM, after a checkpoint at the end of the optimizer step that is under way.

    A signal only sets a flag: nothing is saved inside a handler, which may run in the middle of a step. At the end of each step
    the ranks agree, over a connection of the CPUs, which no GPU has to be waited for; a signal to one of them is enough. The
    process ends with 128 + the signal: 138 after SIGUSR1, 143 after SIGTERM. Whoever sends the same signal again more than five
    seconds later means it, and ends the process at once; the last whole checkpoint stays.

    Args:
        requeue: on SIGUSR1, which Slurm sends before the limit (`--signal=USR1@180`), ask Slurm to queue the job again, once;
            Slurm does so where the job was submitted with `--requeue`. After SIGTERM Slurm requeues by itself or means to cancel.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self._signal = 0
        self._at = 0.0
        self._process = os.getpid()
        self._saved_step = -1
        self._leaving = 0
        self._group: Any = None
        self._before: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """SIGUSR1 is listened to from here on; unheard, it ends a process."""
        if stage == "fit":
            self._process, self._signal, self._leaving = os.getpid(), 0, 0
            self._listen(signal.SIGUSR1)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the place of Lightning's handlers, which save inside of themselves and talk to other ranks there."""
        for number in (signal.SIGUSR1, signal.SIGTERM):
            self._listen(number)
        self._saved_step = trainer.global_step
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an optimizer step, save and end if any rank was told to."""
        if trainer.global_step == self._saved_step:
            return
        self._saved_step = trainer.global_step
        self._leaving = self._agreed()
        if self._leaving:
            self._save(trainer)  # and leave at the next hook, when Lightning has logged this step as well

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave, once the step before is saved and logged."""
        self._leave(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave before a validation rather than after it."""
        self._leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave between epochs."""
        self._leave(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave signals as they were."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _listen(self, number: int) -> None:
        try:
            before = signal.signal(number, self._note)
        except ValueError:  # not the main thread
            return
        if before != self._note:
            self._before.setdefault(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, forked from here
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self._signal and time.monotonic() - self._at > AGAIN_SEC:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self._signal:
            self._signal, self._at = number, time.monotonic()

    def _agreed(self) -> int:
        """The signal that any rank was sent, the same on all of them; 0 for none."""
        if self._group is None:
            return self._signal
        number = torch.tensor([self._signal])
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return int(number)

    def _save(self, trainer: L.Trainer) -> None:
        saver = next((callback for callback in cast(Any, trainer).callbacks if isinstance(callback, Checkpoints)), None)
        if saver is not None:
            saver.after_step(trainer)
            saver.save(trainer, wait=True)

    def _leave(self, trainer: L.Trainer) -> None:
        """End with the signal's code; a run that has all of its steps ends as it would have."""
        number = self._leaving
        if not number or 0 <= trainer.max_steps <= trainer.global_step:
            return
        said = ""
        if number == signal.SIGUSR1 and self.requeue and trainer.is_global_zero:
            said = requeue_job(dict(os.environ))
        if self._group is not None:
            dist.barrier(self._group)  # the first rank to end takes the others along
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            log.warning("stopped by %s at step %d, which is saved%s", name, trainer.global_step, said)
        raise SystemExit(128 + number)


def requeue_job(environ: dict[str, str], call: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> str:
    """Ask Slurm to queue the job that this process belongs to again; what came of it, in words.

    Args:
        environ: where Slurm says which job this is; only read.
        call: runs the command.
    """
    job = environ.get("SLURM_JOB_ID", "")
    if environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return "; the identical command goes on"
    try:
        done = call(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"; job {job} could not be queued again ({error}); the identical command goes on"
    if done.returncode:
        return f"; Slurm did not queue job {job} again ({done.stderr.strip()}); the identical command goes on"
    return f"; job {job} is queued again"
