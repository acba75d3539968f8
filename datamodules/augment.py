"""Augmentation of waveforms, each a pure function of (waveform, generator), so that a resumed run hears the same."""

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from lhotse.cut import Cut

from datamodules.cuts import read_cuts
from datamodules.recordings import BadRecording, load_recording
from speechlm.sound import resample
from speechlm.tokens.clock import Clock

NOISE_TRIES = 4


@dataclass(frozen=True)
class Augmentation:
    """What is done to training audio, in this order; nothing by default.

    Args:
        speed: factors such as [0.9, 1.0, 1.1], one drawn per recording, to a hundredth; tempo and pitch move together.
        noise: what is added: "white", "pink", or the path of a cut manifest of noises.
        noise_snr_db: range of the signal-to-noise ratio; null adds none.
        noise_share: share of recordings that get noise.
        volume_db: range of a gain in decibels; null leaves the volume.
    """

    speed: list[float] = field(default_factory=list)
    noise: str = "white"
    noise_snr_db: tuple[float, float] | None = None
    noise_share: float = 0.5
    volume_db: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if any(not 0.5 <= factor <= 2.0 for factor in self.speed):
            raise ValueError(
                f"speed factors must lie in [0.5, 2], got {self.speed}; edit `augmentation.speed` in the config"
            )
        for name in ("noise_snr_db", "volume_db"):
            limits = getattr(self, name)
            if limits is not None and not limits[0] <= limits[1]:
                raise ValueError(
                    f"a range goes from low to high, got {limits}; edit `augmentation.{name}` in the config"
                )

    def choose_speed(self, name: str, seconds: float, max_seconds: float) -> float:
        """The factor for a recording, drawn by name, of those that leave it no longer than `max_seconds`; 1 if none is."""
        fitting = [factor for factor in self.speed if seconds / factor <= max_seconds]
        return random.Random(name).choice(fitting) if fitting else 1.0

    def __call__(self, audio: np.ndarray, speed: float, rng: np.random.Generator, clock: Clock) -> np.ndarray:
        """(N,) float32 in [-1, 1] -> (N / speed,) float32 in [-1, 1]."""
        if speed != 1.0:
            audio = resample(audio, round(speed * 100), 100)
        if self.noise_snr_db is not None and rng.random() < self.noise_share:
            audio = _add(audio, self._noise(len(audio), rng, clock), rng.uniform(*self.noise_snr_db))
        if self.volume_db is not None:
            audio = audio * np.float32(10 ** (rng.uniform(*self.volume_db) / 20))
        return np.clip(audio, -1.0, 1.0)

    def _noise(self, num_samples: int, rng: np.random.Generator, clock: Clock) -> np.ndarray:
        white = rng.standard_normal(num_samples, dtype=np.float32)
        if self.noise == "white":
            return white
        if self.noise == "pink":
            return _pink(white)
        cuts = _noise_cuts(self.noise)
        for _ in range(NOISE_TRIES):
            try:
                clip = load_recording(cuts[int(rng.integers(len(cuts)))], clock)
            except BadRecording:
                continue
            start = int(rng.integers(max(1, len(clip) - num_samples + 1)))
            return np.resize(clip[start:], num_samples)
        return white


def _add(audio: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """The sum, the noise scaled to the ratio of the two powers."""
    power = float(np.mean(noise**2))
    if power == 0.0:
        return audio
    wanted = float(np.mean(audio**2)) * 10 ** (-snr_db / 10)
    return audio + noise * np.float32(np.sqrt(wanted / power))


def _pink(white: np.ndarray) -> np.ndarray:
    """White noise with its power made to fall as 1/f."""
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
    return np.fft.irfft(spectrum, len(white)).astype(np.float32)


@lru_cache(maxsize=4)
def _noise_cuts(path: str) -> list[Cut]:
    """All noises of a manifest: their descriptions, not their audio."""
    cuts = list(read_cuts(path))
    if not cuts:
        raise ValueError(f"the noise manifest {path} has no cut; edit `augmentation.noise` in the config")
    return cuts
