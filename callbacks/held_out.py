"""The same few held-out recordings at every validation: what the callbacks that show them have in common."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT

from callbacks.wandb_log import WandbLog
from speechlm.batch import Recordings
from speechlm.validation_sets import set_name


class HeldOut(L.Callback):
    """Takes the first recordings of every validation set, on the first rank, and shows them when all sets are through.

    Args:
        recordings: how many of each validation set, its first ones.
        every: validations between two of these.
    """

    def __init__(self, recordings: int = 4, every: int = 1) -> None:
        if recordings < 1 or every < 1:
            raise ValueError(f"recordings and every must be at least 1, got {recordings} and {every}")
        self.recordings, self.every = recordings, every
        self._taken: dict[str, list[Any]] = {}
        self._validations = 0

    def take(self, trainer: L.Trainer, stage: Any, batch: Any, count: int, folder: Path) -> list[Any]:
        """Make something of the first `count` recordings of a batch, or of all where it has fewer.

        Args:
            trainer: that validates.
            stage: that is validated.
            batch: of recordings.
            count: still wanted of this set.
            folder: for files of this set.
        """
        raise NotImplementedError

    def show(self, trainer: L.Trainer, stage: L.LightningModule, name: str, taken: list[Any], folder: Path) -> None:
        """Write and log what was taken of a set, whose files go to `folder`."""
        raise NotImplementedError

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with nothing taken."""
        self._taken = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Recordings,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take what is still wanted of the set."""
        if trainer.sanity_checking or not trainer.is_global_zero or self._validations % self.every:
            return
        name = set_name(trainer, dataloader_idx)
        taken = self._taken.setdefault(name, [])
        missing = self.recordings - len(taken)
        if missing > 0:
            taken += self.take(trainer, pl_module, batch, missing, _folder(trainer, name))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show every set."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._validations += 1
        for name, taken in self._taken.items():
            self.show(trainer, pl_module, name, taken, _folder(trainer, name))

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._validations = state_dict["validations"]


def log_table(trainer: L.Trainer, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table to W&B, where it logs."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLog) and rows:
            logger.log_rows(key, columns, rows, trainer.global_step)


def _folder(trainer: L.Trainer, name: str) -> Path:
    """Files of a validation set."""
    return Path(trainer.default_root_dir) / "samples" / name
