"""The same few held-out recordings at every validation: their sound, their tokens under their log-mel, and what is understood."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from callbacks.held_out import HeldOut, log_table
from callbacks.listen import file_name
from speechlm.batch import AudioBatch
from speechlm.evals.pictures import mel_with_codes
from speechlm.files import write_bytes_atomic, write_text_atomic
from speechlm.nn.mel import MelSpectrogram
from speechlm.sound import encoded

COLUMNS = ["recording", "sound", "log-mel and tokens", "text", "understood", "tokens"]


class TokenTable(HeldOut):
    """Writes to `samples/<set>/` of the run folder `<recording>/original.flac` once, and at every validation
    `<recording>/tokens-<step>.png` and `tokens-<step>.json`; the same as a table to W&B, `tokens/<set>`.

    Needs a stage that promises `tokenize`; its `transcribe(audio, audio_lens, languages)`, where it has one, says what it
    understands through its tokens. Runs on the first rank.

    Args:
        recordings: how many of each validation set, its first ones.
        every: validations between two of these.
    """

    def take(self, trainer: L.Trainer, stage: Any, batch: AudioBatch, count: int, folder: Path) -> list[list[Any]]:
        """Tokenize, and write files."""
        return _rows(stage, batch, min(count, len(batch)), folder, trainer.global_step)

    def show(
        self, trainer: L.Trainer, stage: L.LightningModule, name: str, taken: list[list[Any]], folder: Path
    ) -> None:
        """Log the table."""
        plain = [{"id": row[0], "text": row[3], "understood": row[4], "tokens": row[5]} for row in taken]
        text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
        write_text_atomic(folder / f"tokens-{trainer.global_step:08d}.json", text)
        log_table(trainer, f"tokens/{name}", COLUMNS, taken)


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
