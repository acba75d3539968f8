"""Augmentation of waveforms, each a pure function of (waveform, generator), so that a resumed run hears the same."""

from dataclasses import dataclass, field

import numpy as np
from scipy.signal import resample_poly


@dataclass(frozen=True)
class Augmentation:
    """What is done to training audio; nothing by default.

    Args:
        speed: factors, one drawn per recording; tempo and pitch move together. 1.0 leaves it as it is.
        volume_db: range of a gain in decibels.
        noise_snr_db: range of the signal-to-noise ratio of added white noise.
        noise_share: share of recordings that get noise.
    """

    speed: list[float] = field(default_factory=list)
    volume_db: tuple[float, float] | None = None
    noise_snr_db: tuple[float, float] | None = None
    noise_share: float = 0.5

    def __post_init__(self) -> None:
        if any(not 0.5 <= factor <= 2.0 for factor in self.speed):
            raise ValueError(f"speed factors must lie in [0.5, 2], got {self.speed}")

    def __call__(self, audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(N,) float32 in [-1, 1] -> (N',) float32 in [-1, 1]."""
        if self.speed:
            audio = _change_speed(audio, float(rng.choice(self.speed)))
        if self.noise_snr_db is not None and rng.random() < self.noise_share:
            power = float(np.mean(audio**2)) * 10 ** (-rng.uniform(*self.noise_snr_db) / 10)
            audio = audio + rng.standard_normal(len(audio), dtype=np.float32) * np.float32(np.sqrt(power))
        if self.volume_db is not None:
            audio = audio * np.float32(10 ** (rng.uniform(*self.volume_db) / 20))
        return np.clip(audio, -1.0, 1.0)


def _change_speed(audio: np.ndarray, factor: float) -> np.ndarray:
    """Resampled so that it plays `factor` times as fast, to a hundredth."""
    hundredths = round(factor * 100)
    if hundredths == 100:
        return audio
    return np.asarray(resample_poly(audio, 100, hundredths), dtype=np.float32)
