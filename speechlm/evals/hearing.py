"""Generated sound: written to a file once, and heard by a recogniser that is no part of the model."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import soundfile

from speechlm.evals.parts import Parts
from speechlm.evals.prompts import RATE_HZ
from speechlm.evals.task import Place
from speechlm.files import write_bytes_atomic
from speechlm.sound import encoded, resample


def saved_sound(item_id: str, what: str, audio: np.ndarray, parts: Parts, place: Place) -> str:
    """Write (N,) audio of the decoder's rate as FLAC and return the file's name."""
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', item_id)[:60]}-{hashlib.sha256(f'{item_id} {what}'.encode()).hexdigest()[:8]}.flac"
    write_bytes_atomic(place.files / name, encoded(audio, parts.decoder.sample_rate_hz))
    return name


def read_sound(path: str) -> tuple[np.ndarray, int]:
    """(N,) float32 and its rate."""
    audio, rate = soundfile.read(path, dtype="float32")
    return audio, int(rate)


def heard(audio: Sequence[np.ndarray], languages: Sequence[str], parts: Parts) -> list[str]:
    """Transcripts of the decoder's waveforms, each by the recogniser of its language."""
    at_16k = [resample(one, parts.decoder.sample_rate_hz, RATE_HZ) for one in audio]
    return transcripts(at_16k, languages, parts)


def transcripts(audio: Sequence[np.ndarray], languages: Sequence[str], parts: Parts) -> list[str]:
    """Transcripts of 16 kHz waveforms."""
    texts = [""] * len(audio)
    for language in sorted(set(languages)):
        mine = [n for n, code in enumerate(languages) if code == language]
        made = parts.listener(language).transcribe([audio[n] for n in mine], [language] * len(mine))
        for n, text in zip(mine, made, strict=True):
            texts[n] = text
    return texts
