"""One cut to one clean waveform, or a named reason why not."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
from lhotse import AudioSource
from lhotse.audio import audio_backend
from lhotse.cut import Cut, MixedCut, MonoCut, MultiCut

from datamodules.cut_lines import TarSlice
from datamodules.skip_limit import SkipLimit
from datamodules.tars import read_member
from speechlm.sound import resample
from speechlm.tokens.clock import Clock

MAX_SAMPLES = 2**27  # of one recording, all channels: a minute of 8 channels at 192 kHz, or a bomb

log = logging.getLogger(__name__)


class BadRecording(Exception):
    """A recording that can not be used; `reason` is two words that are counted, the message says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def load_recording(cut: Cut, clock: Clock, tolerance_sec: float = 0.1) -> np.ndarray:
    """(N,) float32 waveform in [-1, 1] of a cut, at the clock's rate.

    Of several channels the first is taken: channel 0 of the file for a MultiCut, as the released tokenizer does, and the cut's
    own channel for a MonoCut. Other sample rates are converted (the rate is what the file says, not the manifest), samples
    beyond [-1, 1] clipped. A waveform of zeros alone is refused, one that is merely quiet or constant is not.

    Args:
        cut: with a recording.
        clock: rates.
        tolerance_sec: how much the decoded file may differ from the duration in the manifest.

    Raises:
        BadRecording: missing, unreadable, truncated, empty, of another duration, not finite or silent.
    """
    try:
        plain = isinstance(cut, MonoCut | MultiCut) and cut.has_recording and not cut.recording.transforms
        audio, rate_hz = _decode(cut, tolerance_sec) if plain else _render(cut)
    except (BadRecording, MemoryError):  # a machine without memory says nothing about a recording
        raise
    except Exception as error:  # decoders raise whatever they like
        raise BadRecording("unreadable", f"{type(error).__name__}: {error}") from error
    if audio.size == 0:
        raise BadRecording("empty", "no samples")
    if not np.isfinite(audio).all():
        raise BadRecording("not finite", "the waveform has NaN or infinite samples")
    if not audio.any():
        raise BadRecording("silent", "every sample is zero")
    return np.clip(resample(audio, rate_hz, clock.sample_rate_hz), -1.0, 1.0)


def path_of(cut: Cut) -> str:
    """Where the audio of a cut is, for messages."""
    return ", ".join(str(s.source) for s in _sources(cut) if s.type in ("file", "tar")) or "no file"


def _sources(cut: Cut) -> list[AudioSource]:
    """Sources of a cut, or of all tracks of a mixed one."""
    parts = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    real = [part for part in parts if isinstance(part, MonoCut | MultiCut) and part.has_recording]  # not a PaddingCut
    return [source for part in real for source in part.recording.sources]


def _decode(cut: MonoCut | MultiCut, tolerance_sec: float) -> tuple[np.ndarray, int]:
    """(N,) float32 and its rate, of one channel of a file, read by libsndfile and nothing else.

    Lhotse would pad what is up to half a second short with a copy of its end, and hand some file names to a shell.
    """
    wanted = cut.channel if isinstance(cut.channel, int) else min(cut.channel)
    source = next((s for s in cut.recording.sources if wanted in s.channels), None)
    if source is None:
        raise BadRecording("missing channel", f"the recording has no channel {wanted}")
    with soundfile.SoundFile(_open(source)) as file:
        rate_hz = file.samplerate
        if file.frames == 0:
            raise BadRecording("empty", "the file has no samples")
        if abs(file.frames / rate_hz - cut.recording.duration) > tolerance_sec:
            found = f"{file.frames / rate_hz:.3f} s in the file, {cut.recording.duration:.3f} s in the manifest"
            raise BadRecording("wrong duration", found)
        start = round(cut.start * rate_hz)
        num_samples = min(round(cut.duration * rate_hz), file.frames - start)
        if num_samples * file.channels > MAX_SAMPLES:
            raise BadRecording("too large", f"{num_samples} samples of {file.channels} channels")
        if num_samples <= 0:
            raise BadRecording("wrong duration", f"the cut starts at {cut.start} s, the file ends before")
        file.seek(start)
        samples = file.read(num_samples, dtype="float32", always_2d=True)
        if len(samples) < num_samples:
            raise BadRecording("truncated", f"{len(samples)} of {num_samples} samples could be decoded")
    column = source.channels.index(wanted)
    if column >= samples.shape[1]:
        raise BadRecording("missing channel", f"{samples.shape[1]} channels in the file, the manifest wants {wanted}")
    return np.ascontiguousarray(samples[:, column]), rate_hz


def _open(source: AudioSource) -> str | BytesIO:
    """What libsndfile reads a source from."""
    if isinstance(source, TarSlice):
        return BytesIO(read_member(str(source.source), source.offset, source.size))
    if source.type == "memory" and isinstance(source.source, bytes):
        return BytesIO(source.source)
    if source.type == "shar":
        raise BadRecording("missing", str(source.source) or "a Shar placeholder outside of a Shar folder")
    path = Path(str(source.source))
    if source.type != "file" or not path.is_file():  # a FIFO would wait for ever
        raise BadRecording("missing", f"there is no file {path}")
    if path.stat().st_size == 0:
        raise BadRecording("empty", "the file has 0 bytes")
    return str(path)


def _render(cut: Cut) -> tuple[np.ndarray, int]:
    """(N,) float32 and its rate, of a mixed or transformed cut, by Lhotse on libsndfile: no other backend, no shell."""
    for source in _sources(cut):
        _open(source)
    with audio_backend("LibsndfileBackend"):
        audio = cut.load_audio()
    if audio is None or audio.size == 0:
        raise BadRecording("empty", "no samples")
    return np.ascontiguousarray(np.atleast_2d(audio)[0], dtype=np.float32), int(cut.sampling_rate)


@dataclass
class Skips:
    """How many recordings were used and why others were not.

    Args:
        max_rate: share of bad recordings above which reading stops.
        min_count: so many must have been bad before the share is looked at.
    """

    max_rate: float = 0.001
    min_count: int = 10
    used: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, used: int, skipped: list[tuple[str, str]]) -> None:
        """Count and log a batch: recordings used, and (cut id, "reason: path: detail") of those that were not.

        Raises:
            RuntimeError: too large a share is bad.
        """
        self.used += used
        for cut_id, why in skipped:
            self.reasons[why.partition(":")[0]] += 1
            log.warning("skipped %s (%s); %d bad, %d good so far", cut_id, why, self.reasons.total(), self.used)
        if skipped:
            limit = SkipLimit(self.max_rate, self.min_count, "`data.init_args.max_skip_rate`")
            last = f"{skipped[-1][0]} ({skipped[-1][1]})"
            limit.require(self.reasons, self.used + self.reasons.total(), "recordings", last)
