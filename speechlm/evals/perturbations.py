"""What happens to speech on its way: noise, another tempo, telephones and codecs. Each gives back a waveform at the same rate."""

import io
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import soundfile as sf
from scipy.signal import resample_poly

SAMPLE_RATE_HZ = 16_000
TELEPHONE_RATE_HZ = 8_000
MU = 255.0  # of G.711

Perturbation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(snr_db: float) -> Perturbation:
    """Pink noise at a ratio of the powers of speech and noise."""

    def apply(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        spectrum = np.fft.rfft(rng.standard_normal(len(audio)))
        pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), len(audio))
        power = np.mean(audio**2) * 10 ** (-snr_db / 10)
        return np.clip(audio + pink * np.sqrt(power / max(1e-20, np.mean(pink**2))), -1, 1).astype(np.float32)

    return apply


def speed(factor: Fraction) -> Perturbation:
    """Played faster (above 1) or slower; tempo and pitch move together."""

    def apply(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return resample_poly(audio, factor.denominator, factor.numerator).astype(np.float32)

    return apply


def volume(gain_db: float) -> Perturbation:
    """Louder or quieter."""

    def apply(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.clip(audio * 10 ** (gain_db / 20), -1, 1).astype(np.float32)

    return apply


def narrow_band(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing above 4 kHz, as at 8000 samples a second."""
    up, down = SAMPLE_RATE_HZ, TELEPHONE_RATE_HZ
    narrow = resample_poly(audio, down // 1000, up // 1000)
    return resample_poly(narrow, up // 1000, down // 1000)[: len(audio)].astype(np.float32)


def telephone(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Narrow band in 8 bits a sample, by the μ-law of G.711 (the continuous curve)."""
    narrow = np.clip(narrow_band(audio, rng), -1, 1)
    squeezed = np.sign(narrow) * np.log1p(MU * np.abs(narrow)) / np.log1p(MU)
    steps = np.round((squeezed + 1) / 2 * MU) / MU * 2 - 1
    return (np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(MU)) / MU).astype(np.float32)


def opus(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """There and back through Opus with as few bits as libsndfile gives it, about 7 kbit/s."""
    packed = io.BytesIO()
    with sf.SoundFile(packed, "w", SAMPLE_RATE_HZ, 1, "OPUS", format="OGG", compression_level=1.0) as file:
        file.write(np.clip(audio, -1, 1))
    packed.seek(0)
    heard, _ = sf.read(packed, dtype="float32")
    return np.pad(heard, (0, max(0, len(audio) - len(heard))))[: len(audio)]


#: What the report tries, in its order.
ALL: dict[str, Perturbation] = {
    "noise 20 dB": noise(20),
    "noise 10 dB": noise(10),
    "noise 5 dB": noise(5),
    "noise 0 dB": noise(0),
    "speed 0.9": speed(Fraction(9, 10)),
    "speed 1.1": speed(Fraction(11, 10)),
    "20 dB quieter": volume(-20),
    "8 kHz": narrow_band,
    "telephone (8 kHz, μ-law)": telephone,
    "Opus, about 7 kbit/s": opus,
}
