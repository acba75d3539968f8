"""Fundamental frequency of recordings by WORLD: what a vocoder's pitch predictor learns to hear in the mel.

WORLD's Harvest (M. Morise, Interspeech 2017) takes a seventh of the recording's duration on one core; DIO thirty times less, and
hears less. Both are refined by StoneMask. They run in the loader's workers.
"""

import importlib
import warnings
from typing import Any, Literal

import numpy as np

from speechlm.tokens.clock import Clock

PitchMethod = Literal["harvest", "dio"]
MIN_VOICED = 5  # values; where Harvest hears fewer, DIO is asked


def pitch_of(audio: np.ndarray, clock: Clock, method: PitchMethod = "harvest") -> np.ndarray:
    """(N,) waveform -> (ceil(N / hop),) float32 pitch in Hz in the middle of each mel frame, 0 where there is none.

    Raises:
        ValueError: pyworld is not installed, or there is no such method.
    """
    world = _world()
    if method not in ("harvest", "dio"):
        raise ValueError(f"pitch is heard by 'harvest' or 'dio', got {method!r}")
    samples = np.ascontiguousarray(audio, dtype=np.float64)
    # Twice as often as frames come: every other value lies in the middle of one.
    period_ms = 500.0 * clock.hop_samples / clock.sample_rate_hz
    pitch, times = getattr(world, method)(samples, clock.sample_rate_hz, frame_period=period_ms)
    if method == "harvest" and np.count_nonzero(pitch) < MIN_VOICED:
        pitch, times = world.dio(samples, clock.sample_rate_hz, frame_period=period_ms)
    refined = world.stonemask(samples, pitch, times, clock.sample_rate_hz)[1::2]
    frames = clock.num_frames(len(audio))
    return np.pad(refined[:frames], (0, max(0, frames - len(refined)))).astype(np.float32)


def require_pitch() -> None:
    """Say at once that pitch can not be heard here, rather than in a worker.

    Raises:
        ValueError: pyworld is not installed.
    """
    _world()


def _world() -> Any:
    """WORLD, which is optional; it warns of its own use of pkg_resources."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            return importlib.import_module("pyworld")
    except ImportError as error:
        raise ValueError(
            f"the pitch of recordings is heard by pyworld, which can not be imported ({error}); install it with "
            "`pip install 'speechlm[vocoder]'`, or train without pitch: data.init_args.pitch: null and the weight of the "
            "pitch loss 0"
        ) from error
