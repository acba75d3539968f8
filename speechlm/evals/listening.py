"""Run a tokenizer over held-out recordings: transcripts with and without the bottleneck, codes, and how long it took."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from speechlm.batch import AudioBatch
from speechlm.tokens.clock import Clock


class Tokenizer(Protocol):
    """What a stage must promise to be listened to."""

    clock: Clock

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) waveform, (B,) samples -> (B, T) codes, (B,) tokens."""

    def transcribe(self, audio: Tensor, audio_lens: Tensor, languages: list[str] | None = None) -> list[str]:
        """Transcripts through the bottleneck."""

    def transcribe_unquantised(
        self, audio: Tensor, audio_lens: Tensor, languages: list[str] | None = None
    ) -> list[str]:
        """Transcripts of the model the tokenizer started from."""


@dataclass(frozen=True)
class Heard:
    """One recording and what became of it."""

    name: str
    audio: np.ndarray  # (N,) float32
    codes: np.ndarray  # (T,) int64
    reference: str
    through: str  # transcript through the bottleneck
    unquantised: str | None  # transcript of the starting model; None where there is none to compare with
    language: str = ""
    speaker: str = ""


@dataclass(frozen=True)
class Listening:
    """All recordings of one set, and the time `tokenize` took."""

    heard: list[Heard]
    audio_sec: float
    tokenize_sec: float

    @property
    def times_real_time(self) -> float:
        """Seconds of speech tokenized per second."""
        return self.audio_sec / max(1e-9, self.tokenize_sec)


@torch.inference_mode()
def listen(
    tokenizer: Tokenizer,
    batches: Iterable[AudioBatch],
    limit: int | None = None,
    speakers: Mapping[str, str] | None = None,
    compare: bool = True,
    languages: set[str] | None = None,
) -> Listening:
    """Tokenize and transcribe recordings.

    Args:
        tokenizer: what is listened to.
        batches: the recordings.
        limit: at most so many of them.
        speakers: by name of the recording.
        compare: whether the tokenizer has an unquantised model to compare with.
        languages: codes it can be asked to write in; recordings of others are transcribed as if in none. None asks for any.
    """
    heard: list[Heard] = []
    audio_sec = tokenize_sec = 0.0
    for batch in batches:
        begin = time.perf_counter()
        codes, lens = tokenizer.tokenize(batch.audio, batch.audio_lens)
        tokenize_sec += time.perf_counter() - begin
        audio_sec += batch.seconds
        asked = [code if languages is None or code in languages else "" for code in batch.languages]
        through = tokenizer.transcribe(batch.audio, batch.audio_lens, asked)
        plain: list[str] | list[None] = [None] * len(batch)
        if compare:
            plain = tokenizer.transcribe_unquantised(batch.audio, batch.audio_lens, asked)
        for i, name in enumerate(batch.cut_ids):
            audio = batch.audio[i, : batch.audio_lens[i]].numpy()
            own = codes[i, : lens[i]].numpy()
            language = batch.languages[i] if batch.languages else ""
            speaker = (speakers or {}).get(name, "")
            heard.append(Heard(name, audio, own, batch.texts[i], through[i], plain[i], language, speaker))
        if limit is not None and len(heard) >= limit:
            break
    return Listening(heard[:limit], audio_sec, tokenize_sec)


def snippets_of_code(
    heard: list[Heard], code: int, clock: Clock, num: int = 8, context_sec: float = 0.04
) -> np.ndarray:
    """Where a code occurs in up to `num` different recordings, one after the other: (N,) float32 with short fades and gaps."""
    gap = np.zeros(clock.num_samples(0.12), np.float32)
    context = clock.num_samples(context_sec)
    parts: list[np.ndarray] = []
    for item in heard:
        places = np.flatnonzero(item.codes == code)
        if len(places) and len(parts) < 2 * num:
            start = clock.samples_of_tokens(int(places[0]))
            piece = item.audio[max(0, start - context) : start + clock.samples_per_token + context].copy()
            fade = min(len(piece) // 4, context)
            if fade:
                ramp = np.linspace(0, 1, fade, dtype=np.float32)
                piece[:fade] *= ramp
                piece[-fade:] *= ramp[::-1]
            parts += [piece, gap]
    return np.concatenate(parts) if parts else gap
