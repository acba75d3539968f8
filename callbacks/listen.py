"""The same few held-out recordings at every validation: what became of them, to hear, to see, and as a word error rate."""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from callbacks.held_out import HeldOut, log_table
from speechlm.batch import ResynthesisBatch
from speechlm.evals.pictures import mel_above_mel
from speechlm.evals.wer import error_rates
from speechlm.files import write_bytes_atomic, write_text_atomic
from speechlm.nn.mel import MelSpectrogram
from speechlm.nn.whisper_source import SourceForm, WhisperSource
from speechlm.sound import encoded, resample

ASR_RATE_HZ = 16_000
COLUMNS = ["recording", "original", "made", "log-mels", "text", "heard in the original", "heard in the made"]
log = logging.getLogger(__name__)


@dataclasses.dataclass
class Heard:
    """One recording, what the stage made of it, and what was understood."""

    name: str
    original: np.ndarray  # (N,) float32
    made: np.ndarray  # (N,) float32
    rate_hz: int
    text: str
    language: str = ""
    original_words: str = ""
    made_words: str = ""


class Listen(HeldOut):
    """Writes to `samples/` of the run folder, and to W&B where it logs: `<set>/<recording>/original.flac` once, and for every
    validation `step-<n>.flac` and `step-<n>.png`, the two log-mels above each other. With an ASR, `val/<set>/wer_original` and
    `wer_resynthesis` of these recordings, and what was understood in `step-<n>.json`; `cer_…` in languages that are counted by
    character, and `wer_<language>_…` in a set of several languages.

    Needs a stage that promises `resynthesize(batch)` or else `decode(speech_tokens, speech_token_lens)`, each giving (B, N)
    waveforms and, if it likes, (B,) samples. Runs on the first rank.

    Args:
        recordings: how many of each validation set, its first ones.
        whisper: name or folder of the ASR, or null for none.
        whisper_form: how it was trained, see `WhisperSource`.
        every: validations between two of these.
    """

    def __init__(
        self, recordings: int = 4, whisper: str | None = None, whisper_form: SourceForm = "published", every: int = 1
    ) -> None:
        super().__init__(recordings, every)
        self.asr = WhisperSource(whisper, whisper_form) if whisper else None

    def take(self, trainer: L.Trainer, stage: Any, batch: ResynthesisBatch, count: int, folder: Path) -> list[Heard]:
        """Let the stage speak."""
        return _heard(stage, _first(batch, count))

    def show(self, trainer: L.Trainer, stage: L.LightningModule, name: str, taken: list[Heard], folder: Path) -> None:
        """Understand, write and log."""
        if self.asr is not None:
            for key, rate in self._understood(taken, stage.device).items():
                stage.log(f"val/{name}/{key}", rate, rank_zero_only=True)
            words = [{"id": h.name, "text": h.text, "original": h.original_words, "made": h.made_words} for h in taken]
            text = json.dumps(words, indent=1, ensure_ascii=False) + "\n"
            write_text_atomic(folder / f"step-{trainer.global_step:08d}.json", text)
        rows = [
            [h.name, *_write(trainer, h, folder / file_name(h.name)), h.text, h.original_words, h.made_words]
            for h in taken
        ]
        log_table(trainer, f"listen/{name}", COLUMNS, rows)

    def _understood(self, heard: list[Heard], device: torch.device) -> dict[str, float]:
        """Transcripts into `heard`; word error rates of the recordings that have a text."""
        assert self.asr is not None
        understood = []
        for item in heard:
            try:
                item.original_words, item.made_words = (
                    self.asr.to(device).transcribe(*_for_asr(audio, item.rate_hz, device), [item.language])[0]
                    for audio in (item.original, item.made)
                )
                understood.append(item)
            except ValueError as error:  # such as a language that the ASR does not know
                log.warning("%s is not counted: %s", item.name, error)
        texts, languages = [item.text for item in understood], [item.language for item in understood]
        words = {
            "original": [item.original_words for item in understood],
            "resynthesis": [item.made_words for item in understood],
        }
        rates = {side: error_rates(texts, said, languages) for side, said in words.items()}
        return {
            "_".join([found.metric, *([code] if len(by_language) > 1 else []), side]): found.rate
            for side, by_language in rates.items()
            for code, found in by_language.items()
        }


@torch.no_grad()
def _heard(stage: Any, batch: ResynthesisBatch) -> list[Heard]:
    """What the stage makes of a batch, or nothing where it can not yet."""
    try:
        made = stage.resynthesize(batch) if hasattr(stage, "resynthesize") else _decoded(stage, batch)
    except ValueError as error:  # such as a decoder without a vocoder
        log.warning("nothing to listen to: %s", error)
        return []
    audio, lens = made if isinstance(made, tuple) else (made, batch.audio_lens)
    lens = lens.clamp(max=audio.shape[1])
    return [
        Heard(
            batch.cut_ids[i],
            batch.audio[i, : batch.audio_lens[i]].float().cpu().numpy(),
            audio[i, : lens[i]].float().cpu().numpy(),
            batch.sample_rate_hz,
            batch.texts[i],
            batch.languages[i] if batch.languages else "",
        )
        for i in range(len(batch))
    ]


def _decoded(stage: Any, batch: ResynthesisBatch) -> Any:
    return stage.decode(batch.speech_tokens, batch.speech_token_lens)


def _first(batch: ResynthesisBatch, count: int) -> ResynthesisBatch:
    """The first recordings of a batch."""
    rows = {
        field.name: getattr(batch, field.name)[:count]
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), Tensor | list)
    }
    return dataclasses.replace(batch, **rows)


def _for_asr(audio: np.ndarray, rate_hz: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(1, N) and (1,) at the ASR's rate, no more than it hears."""
    heard = resample(audio, rate_hz, ASR_RATE_HZ)[: 30 * ASR_RATE_HZ]
    samples = torch.from_numpy(np.ascontiguousarray(heard, dtype=np.float32)).to(device)
    return samples[None], torch.tensor([len(samples)], device=device)


def _write(trainer: L.Trainer, item: Heard, folder: Path) -> list[Path]:
    """Files of one recording: the original, what was made of it, and the log-mels of both."""
    original, made = folder / "original.flac", folder / f"step-{trainer.global_step:08d}.flac"
    if not original.exists():
        write_bytes_atomic(original, encoded(item.original, item.rate_hz))
    write_bytes_atomic(made, encoded(np.nan_to_num(item.made), item.rate_hz))
    picture = made.with_suffix(".png")
    mel = MelSpectrogram(item.rate_hz, max_hz=None)
    above, below = (mel(torch.from_numpy(audio)[None])[0][0].numpy() for audio in (item.original, item.made))
    write_bytes_atomic(picture, mel_above_mel(above, below, mel.hop_samples / item.rate_hz))
    return [original, made, picture]


def file_name(name: str) -> str:
    """A cut's id as the name of a folder."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"
