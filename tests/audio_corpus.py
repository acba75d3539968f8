"""Tiny corpora of synthetic audio for the tests of the data side."""

from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment

from datamodules.cuts import write_cuts

RATE_HZ = 16_000


def tone(seconds: float, rate_hz: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    """(N,) float32: a quiet tone with noise, different for every seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    audio = 0.2 * np.sin(2 * np.pi * (200 + 20 * seed) * time) + 0.01 * rng.standard_normal(len(time))
    return audio.astype(np.float32)


def cut_of(path: Path, text: str = "hello", rate_hz: int = RATE_HZ, num_samples: int | None = None) -> MonoCut:
    """The cut that a manifest has for a file; `num_samples` where the file can not be asked."""
    if num_samples is None:
        recording = Recording.from_file(path, recording_id=path.stem)
    else:
        source = {"type": "file", "channels": [0], "source": str(path)}
        fields = {"id": path.stem, "sources": [source], "sampling_rate": rate_hz}
        recording = Recording.from_dict({**fields, "num_samples": num_samples, "duration": num_samples / rate_hz})
    supervision = SupervisionSegment(path.stem, path.stem, 0.0, recording.duration, text=text, language="en")
    return MonoCut(path.stem, 0.0, recording.duration, 0, supervisions=[supervision], recording=recording)


def make_corpus(folder: Path, count: int, name: str = "a", seconds: tuple[float, float] = (0.2, 0.6)) -> Path:
    """`count` FLAC files of different lengths and a manifest, which is returned."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    cuts = []
    for index in range(count):
        path = folder / "audio" / f"{name}{index:03d}.flac"
        length = seconds[0] + (seconds[1] - seconds[0]) * ((index * 7) % count) / count
        soundfile.write(path, tone(length, seed=index), RATE_HZ)
        cuts.append(cut_of(path, text=f"{name} {index}"))
    write_cuts(cuts, folder / f"{name}.jsonl")
    return folder / f"{name}.jsonl"
