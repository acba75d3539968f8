"""The same few held-out recordings at every validation: their sound, their tokens under their log-mel, and what is understood."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from callbacks.listen import file_name
from callbacks.wandb_log import WandbLog
from speechlm.batch import AudioBatch
from speechlm.evals.pictures import mel_with_codes
from speechlm.files import write_bytes_atomic, write_text_atomic
from speechlm.nn.mel import MelSpectrogram
from speechlm.sound import encoded
from speechlm.validation_sets import set_name

COLUMNS = ["recording", "sound", "log-mel and tokens", "text", "understood", "tokens"]


class TokenTable(L.Callback):
    """Writes to `samples/<set>/` of the run folder `<recording>/original.flac` once, and at every validation
    `<recording>/tokens-<step>.png` and `tokens-<step>.json`; the same as a table to W&B, `tokens/<set>`.

    Needs a stage that promises `tokenize`; its `transcribe(audio, audio_lens, languages)`, where it has one, says what it
    understands through its tokens. Runs on the first rank.

    Args:
        recordings: how many of each validation set, its first ones.
        every: validations between two of these.
    """

    def __init__(self, recordings: int = 4, every: int = 1) -> None:
        if recordings < 1 or every < 1:
            raise ValueError(f"recordings and every must be at least 1, got {recordings} and {every}")
        self.recordings, self.every = recordings, every
        self._rows: dict[str, list[list[Any]]] = {}
        self._validations = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with no rows."""
        self._rows = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: AudioBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Tokenize the first recordings of the set, and write their files."""
        if trainer.sanity_checking or not trainer.is_global_zero or self._validations % self.every:
            return
        name = set_name(trainer, dataloader_idx)
        rows = self._rows.setdefault(name, [])
        count = min(self.recordings - len(rows), len(batch))
        if count > 0:
            rows += _rows(
                pl_module, batch, count, Path(trainer.default_root_dir) / "samples" / name, trainer.global_step
            )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the tables."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._validations += 1
        for name, rows in self._rows.items():
            path = Path(trainer.default_root_dir) / "samples" / name / f"tokens-{trainer.global_step:08d}.json"
            plain = [{"id": row[0], "text": row[3], "understood": row[4], "tokens": row[5]} for row in rows]
            write_text_atomic(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLog) and rows:
                    logger.log_rows(f"tokens/{name}", COLUMNS, rows, trainer.global_step)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._validations = state_dict["validations"]


@torch.no_grad()
def _rows(stage: Any, batch: AudioBatch, count: int, folder: Path, step: int) -> list[list[Any]]:
    """Of the first `count` recordings of a batch; their sounds and pictures go to `folder`."""
    audio, lens = batch.audio[:count], batch.audio_lens[:count]
    tokens, token_lens = stage.tokenize(audio, lens)
    languages = batch.languages[:count]
    understood = stage.transcribe(audio, lens, languages) if hasattr(stage, "transcribe") else [""] * count
    rows = []
    for i in range(count):
        own = tokens[i, : token_lens[i]].cpu().numpy()
        place = folder / file_name(batch.cut_ids[i])
        files = _files(audio[i, : lens[i]], own, batch.sample_rate_hz, float(stage.clock.token_rate_hz), place, step)
        text = " ".join(map(str, own.tolist()))
        rows.append([batch.cut_ids[i], *files, batch.texts[i], understood[i], text])
    return rows


def _files(
    audio: Tensor, tokens: np.ndarray, rate_hz: int, token_rate_hz: float, folder: Path, step: int
) -> list[Path]:
    """The sound, once, and the picture of this step."""
    sound, picture = folder / "original.flac", folder / f"tokens-{step:08d}.png"
    if not sound.exists():
        write_bytes_atomic(sound, encoded(audio.float().cpu().numpy(), rate_hz))
    transform = MelSpectrogram(rate_hz, hop_samples=rate_hz // 100, max_hz=None)
    mel = transform(audio.float().cpu()[None])[0][0].numpy()
    write_bytes_atomic(picture, mel_with_codes(mel, tokens, 1.0 / token_rate_hz))
    return [sound, picture]
