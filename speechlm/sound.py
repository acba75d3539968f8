"""Waveforms in memory: at another rate, and as the content of a sound file."""

import io
import math

import numpy as np
import soundfile
from scipy.signal import resample_poly


def resample(audio: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """(N,) float32 at one rate -> (ceil(N * to / from),) float32 at another, by a polyphase filter."""
    if from_hz == to_hz:
        return audio
    common = math.gcd(from_hz, to_hz)
    return np.asarray(resample_poly(audio, to_hz // common, from_hz // common), dtype=np.float32)


def encoded(audio: np.ndarray, rate_hz: int, form: str = "FLAC", coding: str = "PCM_16") -> bytes:
    """(N,) samples, cut off at [-1, 1], as a file of a form and a coding that libsndfile knows."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(audio, -1.0, 1.0), rate_hz, format=form, subtype=coding)
    return out.getvalue()
