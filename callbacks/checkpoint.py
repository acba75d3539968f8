"""Checkpoints that are whole or absent: the newest few of a run; a kill at any moment leaves one to resume from."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from speechlm.files import atomic_file

STEP_NAME = re.compile(r"step-(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Single-file checkpoints written beside their place, flushed to the disk, then renamed into it."""

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
        _flush_folder(path.parent)


class Checkpoints(Checkpoint):
    """Keeps the newest checkpoints of a run as `step-00001000.ckpt`, with `last.ckpt` pointing at the newest.

    Older ones go only after a newer one is on the disk. For the best by a metric, add Lightning's `ModelCheckpoint` beside it.

    Args:
        folder: where they lie; `runs/<name>/checkpoints` when started by `speechlm.fit`.
        every_n_steps: optimizer steps between two checkpoints; one more is written when training ends.
        keep: how many to keep; -1 keeps all.

    Raises:
        ValueError: a number that keeps nothing or never saves.
    """

    def __init__(self, folder: str, every_n_steps: int = 1000, keep: int = 3) -> None:
        super().__init__()
        if every_n_steps < 1 or keep == 0 or keep < -1:
            raise ValueError(
                f"checkpoints need every_n_steps >= 1 and keep >= 1 (or -1), got {every_n_steps} and {keep}"
            )
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self._saved_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What was just resumed need not be saved again; parts that a killed run left are cleared."""
        self._saved_step = trainer.global_step
        if trainer.is_global_zero and self.folder.exists():
            for part in self.folder.glob(".*.part"):
                _remove(part)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log under the steps that were taken: a run that resumes behind a validation would count that one twice (Lightning
        2.6, a checkpoint from the end of training)."""
        if pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Save on every n-th optimizer step, once, however many micro-batches it has."""
        if trainer.global_step != self._saved_step and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of training, also where its last step was saved: only now the epoch and its validation are over."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        self._saved_step = trainer.global_step
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        temporary = path.with_name(f".{path.name}.part")
        trainer.save_checkpoint(temporary, weights_only=False)  # a folder where the strategy writes shards, else a file
        if trainer.is_global_zero:
            _move(temporary, path)
            _point("last.ckpt", path)
        trainer.strategy.barrier()
        for old in self._superseded(path) if trainer.is_global_zero else []:
            trainer.strategy.remove_checkpoint(old)

    def _superseded(self, newest: Path) -> list[Path]:
        """Checkpoints that are no longer among the newest `keep`, counted by step; never `newest` itself."""
        if self.keep == -1:
            return []
        steps = {path: int(found[1]) for path in self.folder.iterdir() if (found := STEP_NAME.fullmatch(path.name))}
        by_age = sorted(steps, key=lambda path: steps[path])
        return [path for path in by_age[: -self.keep] if path != newest]


def _move(new: Path, place: Path) -> None:
    """Put a file or a folder in its place, where an older one may be."""
    old = place.with_name(f".old-{place.name}.part")
    if place.is_dir():  # a folder can not be replaced in one move
        _remove(old)
        os.replace(place, old)
    os.replace(new, place)
    _flush_folder(place.parent)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _point(name: str, target: Path) -> None:
    """Make the link `name`, beside `target`, lead to it; replaced in one move."""
    temporary = target.with_name(f".{name}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, target.with_name(name))


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
