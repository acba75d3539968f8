"""One cut to one clean waveform, or a named reason why not."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from lhotse.audio.utils import DurationMismatchError
from lhotse.cut import Cut

from speechlm.tokens.clock import Clock


class BadRecording(Exception):
    """A recording that can not be used; `reason` is one word or two, the message says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def load_recording(cut: Cut, clock: Clock) -> np.ndarray:
    """(N,) float32 waveform of a cut at the clock's rate: channel 0 of what has several, resampled where needed.

    Raises:
        BadRecording: unreadable, wrong duration, empty, not finite or silent.
    """
    try:
        audio = cut.resample(clock.sample_rate_hz).load_audio()
    except DurationMismatchError as error:
        raise BadRecording("wrong duration", str(error)) from error
    except Exception as error:  # decoders raise whatever they like
        kind = "wrong duration" if "mismatch" in str(error).lower() else "unreadable"
        raise BadRecording(kind, f"{type(error).__name__}: {error}") from error
    if audio is None or audio.size == 0:
        raise BadRecording("empty", "no samples")
    mono = np.ascontiguousarray(audio[0], dtype=np.float32)
    if not np.isfinite(mono).all():
        raise BadRecording("not finite", "the waveform has NaN or infinite samples")
    if not mono.any():
        raise BadRecording("silent", "every sample is zero")
    return np.clip(mono, -1.0, 1.0)


@dataclass
class Skips:
    """How many recordings were used and why others were not.

    Args:
        max_rate: share of skipped recordings above which reading stops.
        min_count: so many must have been skipped before the share is looked at.
    """

    max_rate: float = 0.001
    min_count: int = 10
    used: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, used: int, skipped: list[tuple[str, str]]) -> None:
        """Count a batch: recordings used, and (cut id, reason) of those that were not.

        Raises:
            RuntimeError: too large a share is bad.
        """
        self.used += used
        self.reasons.update(reason for _, reason in skipped)
        bad = self.reasons.total()
        if skipped and bad >= self.min_count and bad > self.max_rate * (self.used + bad):
            raise RuntimeError(
                f"{bad} of {self.used + bad} recordings could not be used ({dict(self.reasons)}), more than the "
                f"{self.max_rate:.2%} allowed; the last was {skipped[-1][0]} ({skipped[-1][1]}). Mend the corpus or raise "
                f"`data.init_args.max_skip_rate`"
            )
