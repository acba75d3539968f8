"""Checkpoints that are whole or absent, written beside the training; a kill at any moment leaves one to resume from.

What lies on the disk: speechlm/checkpoint/form.py. What is promised, and what the numbers are: docs/checkpoints.md.
"""

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import STEP_OUTPUT

from speechlm.checkpoint import random_state, resume, state
from speechlm.checkpoint.form import Damaged, checkpoints_in, is_checkpoint, read_manifest, step_name, step_of
from speechlm.checkpoint.write import Box, HostCopy, boxes, commit, flush_folder, remove, write_part
from speechlm.files import atomic_file
from speechlm.fsdp2 import FSDP2

log = logging.getLogger(__name__)
PATIENCE_SEC = 1800.0  # for the slowest rank's disk
GRACE_SEC = 20.0  # for the others, when this rank is ending with an error


class CheckpointIO(TorchCheckpointIO):
    """Reads the form of speechlm/checkpoint, and writes single files, where somebody asks the trainer for one.

    Args:
        own: folder of the run's own checkpoints, in which an older one takes the place of one that is damaged.
    """

    def __init__(self, own: Path | None = None) -> None:
        super().__init__()
        self.own = own

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; a reader sees the old file or the new one, never a part.

        Raises:
            ValueError: storage options were given, which a local file has none of.
        """
        if storage_options is not None:
            raise ValueError(f"a checkpoint is a local file here and takes no storage options, got {storage_options!r}")
        path = Path(path)
        with atomic_file(path) as file:
            torch.save(checkpoint, file)
        flush_folder(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint of either form; of the sharded one the newest that is whole."""
        if is_checkpoint(path):
            return resume.newest_whole(Path(path), self.own, resume.load)
        return super().load_checkpoint(path, map_location, weights_only)


class Checkpoints(Checkpoint):
    """Keeps the newest checkpoints of a run as `step-00001000.ckpt`, with `last.ckpt` pointing at the newest.

    A save holds up the training for a copy to the host's memory. Threads write from there, each rank its own part; the first one
    makes a checkpoint of the parts, and only then lets old ones go, so that what was read back last is always there. A step
    begins with the random numbers with which the one before it ended: neither a validation in between nor a restart counts. For
    the best by a metric, add Lightning's `ModelCheckpoint` beside it.

    Args:
        folder: where they lie; `runs/<name>/checkpoints` when started by `speechlm.fit`.
        every_n_steps: optimizer steps between two checkpoints; one more is written when training ends.
        keep: how many to keep; -1 keeps all.
        milestone_every: steps whose checkpoints are kept for good: every multiple of this; null is none.
        background: write beside the training; else the training waits for the disk.

    Raises:
        ValueError: a number that keeps nothing or never saves.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int = 1000,
        keep: int = 3,
        milestone_every: int | None = None,
        background: bool = True,
    ) -> None:
        super().__init__()
        if every_n_steps < 1 or keep == 0 or keep < -1:
            raise ValueError(
                f"checkpoints need every_n_steps >= 1 and keep >= 1 (or -1), got {every_n_steps} and {keep}"
            )
        if milestone_every is not None and (milestone_every < 1 or milestone_every % every_n_steps):
            raise ValueError(
                f"milestone_every must be a multiple of every_n_steps {every_n_steps}, got {milestone_every}"
            )
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self.milestone_every, self.background = milestone_every, background
        self.stall_sec: list[float] = []  # of every save
        self._saved_step = 0
        self._saves = 0  # of this process; the same on all ranks
        self._random: dict[str, Any] | None = None
        self._copy = HostCopy()
        self._writing: Future[None] | None = None
        self._failed = 0  # saves in a row
        self._deadline = float("inf")
        self._lock: Any = None

    # -- when ----------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What was just resumed need not be saved again; parts that a killed run left are cleared.

        Raises:
            ValueError: the strategy or the data can not be resumed exactly.
            RuntimeError: another process writes into the folder.
        """
        _refuse_strategy(trainer)
        _refuse_loaders(trainer)
        self._saved_step, self._deadline = trainer.global_step, float("inf")
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._nonce = trainer.strategy.broadcast(secrets.token_hex(4))
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            for part in self.folder.glob(".*.part"):
                remove(part)
        trainer.strategy.barrier()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on with the random numbers of the step before.

        And log under the steps that were taken: a run that resumes behind a validation would count that one twice (Lightning
        2.6, a checkpoint from the end of training).
        """
        if self._random is not None:
            random_state.restore(self._random)
        if pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Save on every n-th optimizer step, once, however many micro-batches it has."""
        self.after_step(trainer)
        if trainer.global_step != self._saved_step and trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)

    def after_step(self, trainer: L.Trainer) -> None:
        """Remember where the step left the random numbers."""
        self._random = random_state.capture()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of training, also where its last step was saved: only now the epoch and its validation are over."""
        self.save(trainer, wait=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """What is being written is finished, if the other ranks still write theirs."""
        self._deadline = time.monotonic() + GRACE_SEC
        self._finish()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give back thread, memory and lock."""
        if hasattr(self, "_thread"):
            self._thread.shutdown()
        self._copy.release()
        if self._lock is not None:
            (self.folder / ".lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    # -- what a step remembers -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where this rank's random numbers stand."""
        return {"random": self._random or random_state.capture()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """For the first step; see `on_load_checkpoint`."""
        self._random = state_dict.get("random")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whose random numbers they are."""
        checkpoint["world_size"] = trainer.world_size

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A job of another size draws other numbers on its ranks, the same ones at every start."""
        own = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("random")
        if own is not None and checkpoint.get("world_size") != trainer.world_size and trainer.global_rank:
            random_state.derive(own, trainer.global_rank)
            checkpoint["callbacks"][self.state_key] = {"random": random_state.capture()}

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self, trainer: L.Trainer, wait: bool = False) -> None:
        """Write a checkpoint of this step; called by all ranks.

        Raises:
            OSError: two in a row could not be written, or this one could not and is waited for.
        """
        if getattr(trainer, "fast_dev_run", False):
            return
        begin = time.monotonic()
        self._finish()
        self._saved_step = trainer.global_step
        self._saves += 1
        contents = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        shared, own, rest = state.split(contents, _names(trainer), trainer.global_rank)
        mine = boxes(shared, trainer.is_global_zero)
        mine |= {name: Box(tensor, (0,) * tensor.ndim, tuple(tensor.shape)) for name, tensor in own.items()}
        self._copy.take(mine)
        job = self._job(trainer, contents.get("vocab_hash"))
        self._writing = self._thread.submit(self._write, job, self._saves, rest)
        if wait or not self.background:
            self._finish(last=wait)
        self.stall_sec.append(time.monotonic() - begin)

    def _job(self, trainer: L.Trainer, vocab_hash: str | None) -> dict[str, Any]:
        return {
            "step": trainer.global_step,
            "world_size": trainer.world_size,
            "vocab_hash": vocab_hash,
            "rank": trainer.global_rank,
        }

    def _write(self, job: dict[str, Any], number: int, rest: Any) -> None:
        """Runs beside the training. Ranks are not equally fast, and a step may be saved twice: each save has its own folder."""
        rank, place = job.pop("rank"), self.folder / step_name(job["step"])
        temporary = self.folder / f".{place.name}.{self._nonce}-{number}.part"
        begin = time.monotonic()
        write_part(temporary, rank, self._copy, rest)
        if rank == 0:
            commit(temporary, place, **job, wait=self._patience(begin))
            _point("last.ckpt", place)
            for old in superseded(self.folder, place, self.keep, self.milestone_every):
                remove(old)

    def _patience(self, begin: float) -> Callable[[], None]:
        def wait() -> None:
            if time.monotonic() > min(self._deadline, begin + PATIENCE_SEC):
                raise OSError(f"the other ranks' parts did not come within {time.monotonic() - begin:.0f} s")
            time.sleep(0.01)

        return wait

    def _finish(self, last: bool = False) -> None:
        """Wait for what is being written; what went wrong is said, and at the second time in a row ends the run."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
            self._failed = 0
        except OSError as error:
            self._failed += 1
            if self._deadline < float("inf"):
                log.error("the checkpoint of step %d was not finished: %s", self._saved_step, error)
                return
            if self._failed > 1 or last:
                raise OSError(f"the checkpoint of step {self._saved_step} could not be written: {error}") from error
            log.error(
                "the checkpoint of step %d could not be written (%s); the one before is kept, the next save tries again, and "
                "a second failure in a row ends the run",
                self._saved_step,
                error,
            )

    def _take_lock(self) -> None:
        """One writer a folder; the lock goes with the process, however that ends, and is not inherited by loaders."""
        self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115 - held as long as the training
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise RuntimeError(
                f"another process trains into {self.folder.parent}; stop it, or choose another --name"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("%s can not be locked (%s): see that no other job trains into it", self.folder, error)


def superseded(folder: Path, newest: Path, keep: int, milestone_every: int | None = None) -> list[Path]:
    """Checkpoints that may go now that `newest` is whole: older than the newest `keep` whole ones, and no milestones.

    Unfinished and damaged ones do not count among those that are kept; they go when they are older than all of these.
    """
    if keep == -1:
        return []
    listed = [path for path in checkpoints_in(folder) if not path.is_symlink()]
    whole = [path for path in listed if path == newest or _is_whole(path)]
    kept = {newest, *whole[:keep]}
    oldest = min(step_of(path) for path in kept)
    milestones = {path for path in whole if milestone_every and step_of(path) % milestone_every == 0}
    return [path for path in listed if path not in kept | milestones and step_of(path) < oldest]


def _is_whole(path: Path) -> bool:
    try:
        return path.is_file() or read_manifest(path) is not None  # files are of versions before
    except (Damaged, ValueError, OSError):
        return False


def _names(trainer: L.Trainer) -> list[list[list[str]]]:
    """Of every parameter, by optimizer and group."""
    of = {id(parameter): name for name, parameter in trainer.lightning_module.named_parameters()}
    return [
        [
            [of.get(id(p), f"group{number}.{position}") for position, p in enumerate(group["params"])]
            for number, group in enumerate(optimizer.param_groups)
        ]
        for optimizer in trainer.optimizers
    ]


def _refuse_strategy(trainer: L.Trainer) -> None:
    strategy = trainer.strategy
    plain = isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDP2)
    if not plain or (isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2)):
        raise ValueError(
            f"checkpoints know one device, DDP and speechlm.fsdp2.FSDP2, got {type(strategy).__name__}; name one of them as "
            f"trainer.strategy"
        )


def _refuse_loaders(trainer: L.Trainer) -> None:
    """Lightning 2.6 gives every rank the state of the first one's loader, and takes it a batch too late."""
    loaders = trainer.fit_loop._combined_loader
    for loader in loaders.flattened if loaders is not None else ():
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            raise ValueError(
                f"{type(loader).__name__} keeps its own position, which Lightning restores wrongly: the first rank's for all, "
                f"and ahead of the training where the length is unknown; begin where datamodules.resume.position says instead"
            )


def _point(name: str, target: Path) -> None:
    """Make the link `name`, beside `target`, lead to it; replaced in one move."""
    temporary = target.with_name(f".{name}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, target.with_name(name))
