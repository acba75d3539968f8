"""Which codes a tokenizer gives to held-out speech, as a picture after every validation."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT

from callbacks.wandb_log import WandbLog
from speechlm.batch import AudioBatch
from speechlm.evals.pictures import rank_frequency
from speechlm.files import write_bytes_atomic
from speechlm.validation_sets import set_name


class CodebookPicture(L.Callback):
    """Tokenizes the first validation batches and draws how often each code occurs, by rank, a line for each set: a straight line
    is healthy, a cliff is a codebook that is hardly used. Written to `samples/codebook-<step>.png` of the run folder, and to W&B,
    which also gets the counts in the order of the codes. Logs `codebook/used/<set>`, the share of the codes that occur in a set.

    Needs a stage that promises `tokenize` and `num_codes`; costs one more pass of its encoder over those batches.

    Args:
        batches: how many batches of every validation set to tokenize, on the first rank.
    """

    def __init__(self, batches: int = 8) -> None:
        self.batches = batches
        self._counts: dict[str, torch.Tensor] = {}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from zero."""
        self._counts = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: AudioBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the codes of a batch."""
        stage: Any = pl_module
        num_codes = getattr(stage, "num_codes", 0)
        if batch_idx >= self.batches or not num_codes or not trainer.is_global_zero or trainer.sanity_checking:
            return
        codes, _ = stage.tokenize(batch.audio, batch.audio_lens)  # -1 behind the end
        counted = torch.bincount(codes[codes >= 0], minlength=num_codes).cpu()
        name = set_name(trainer, dataloader_idx)
        self._counts[name] = self._counts.get(name, 0) + counted

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the shares."""
        for name, counts in self._counts.items():
            pl_module.log(f"codebook/used/{name}", (counts > 0).float().mean(), rank_zero_only=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw."""
        by_set = {name: counts.numpy() for name, counts in self._counts.items() if counts.any()}
        if not by_set:
            return
        path = Path(trainer.default_root_dir) / "samples" / f"codebook-{trainer.global_step:08d}.png"
        write_bytes_atomic(path, rank_frequency(by_set))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLog):
                logger.log_image("codebook/rank_frequency", [str(path)])
                logger.log_counts("codebook/counts", np.sum(list(by_set.values()), axis=0), trainer.global_step)
