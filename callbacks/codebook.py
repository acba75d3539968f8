"""Which codes a tokenizer gives to held-out speech, as a picture after every validation."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT

from callbacks.wandb_log import WandbLog
from speechlm.batch import AudioBatch
from speechlm.evals.pictures import rank_frequency
from speechlm.files import write_bytes_atomic


class CodebookPicture(L.Callback):
    """Tokenizes the first validation batches and draws how often each code occurs, by rank: a straight line is healthy, a cliff
    is a codebook that is hardly used. Written to `samples/codebook-<step>.png` of the run folder, and to W&B.

    Needs a stage that promises `tokenize` and `num_codes`; costs one more pass of its encoder over those batches.

    Args:
        batches: how many batches of every validation set to tokenize, on the first rank.
    """

    def __init__(self, batches: int = 8) -> None:
        self.batches = batches
        self._counts = torch.zeros(0, dtype=torch.int64)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from zero."""
        self._counts = torch.zeros(getattr(pl_module, "num_codes", 0), dtype=torch.int64)

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
        if batch_idx >= self.batches or not len(self._counts) or not trainer.is_global_zero or trainer.sanity_checking:
            return
        stage: Any = pl_module
        codes, _ = stage.tokenize(batch.audio, batch.audio_lens)  # -1 behind the end
        self._counts += torch.bincount(codes[codes >= 0], minlength=len(self._counts)).cpu()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw."""
        if not self._counts.any():
            return
        path = Path(trainer.default_root_dir) / "samples" / f"codebook-{trainer.global_step:08d}.png"
        write_bytes_atomic(path, rank_frequency(self._counts.numpy()))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLog):
                logger.log_image("codebook/rank_frequency", [str(path)])
