"""Sound files of strangers to samples, and samples to files: bounded in length whatever a header says."""

import base64
import binascii
import io

import numpy as np
import soundfile as sf

from speechlm.serving.resample import Resampler
from speechlm.serving.web.errors import Refused

READABLE = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "MPEG")
#: Name of a format: what soundfile calls it, its coding, its rate (0: the voice's own), its media type.
WRITABLE = {
    "wav": ("WAV", "PCM_16", 0),
    "flac": ("FLAC", "PCM_16", 0),
    "mp3": ("MP3", "MPEG_LAYER_III", 24_000),
    "opus": ("OGG", "OPUS", 24_000),
}
PCM_HZ = 24_000  # of raw samples, as clients of the OpenAI interface expect
BLOCK = 2**16  # frames that are decoded together


def decoded(data: str, rate_hz: int, max_sec: float) -> np.ndarray:
    """Base64 of a WAV, FLAC, Ogg or MP3 file to (N,) float32 samples at a rate, channels averaged.

    Raises:
        Refused: it is none, or too long, or has what no sound has; with 413 or 422.
    """
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"the audio is no base64: {error}", "input_audio.data") from error
    try:
        with sf.SoundFile(io.BytesIO(content)) as file:
            if file.format not in READABLE or file.channels > 8:
                raise Refused(
                    422, f"audio is WAV, FLAC, Ogg or MP3 with up to 8 channels, got {file.format}", "input_audio"
                )
            return _resampled(file, rate_hz, max_sec)
    except (sf.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise Refused(422, f"the audio can not be decoded: {str(error)[:200]}", "input_audio.data") from error


def _resampled(file: sf.SoundFile, rate_hz: int, max_sec: float) -> np.ndarray:
    resampler, left = Resampler(file.samplerate, rate_hz), int(max_sec * file.samplerate)
    if file.frames > left:
        raise Refused(
            413, f"audio is at most {max_sec:g} s long, this has {file.frames / file.samplerate:.0f} s", "input_audio"
        )
    parts = []
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        left -= len(block)
        if left < 0:
            raise Refused(413, f"audio is at most {max_sec:g} s long, this has more", "input_audio")
        if not np.isfinite(block).all():
            raise Refused(422, "the audio has samples that are no numbers", "input_audio.data")
        parts.append(resampler.push(block.mean(axis=1)))
    audio = np.concatenate([*parts, resampler.push(np.zeros(0, np.float32), last=True)])
    return np.clip(audio, -1.0, 1.0)


def encoded(audio: np.ndarray, rate_hz: int, name: str) -> bytes:
    """(N,) samples as a file, or as raw 16-bit samples at 24 kHz for "pcm16"."""
    if name == "pcm16":
        return pcm16(Resampler(rate_hz, PCM_HZ).push(audio, last=True))
    container, coding, rate = WRITABLE[name]
    if rate:
        audio = Resampler(rate_hz, rate).push(audio, last=True)
    file = io.BytesIO()
    sf.write(file, audio, rate or rate_hz, format=container, subtype=coding)
    return file.getvalue()


def pcm16(audio: np.ndarray) -> bytes:
    """(N,) samples in [-1, 1] -> little-endian 16 bits each."""
    return (np.clip(audio, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes()


def from_pcm16(data: bytes) -> np.ndarray:
    """Little-endian 16-bit samples -> (N,) float32 in [-1, 1].

    Raises:
        ValueError: an odd number of bytes.
    """
    if len(data) % 2:
        raise ValueError(f"16-bit samples come in pairs of bytes, got {len(data)} bytes")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0
