"""What is heard in a stretch of a recording, by whom, and whether it is to be trusted."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Trust:
    """What a label must be like to be trained on. The defaults are those that Whisper's authors decode by.

    Args:
        min_confidence: mean log-probability of its tokens.
        max_compression: bytes of the text over those of its zlib stream; a text that repeats itself has a high one.
        max_no_speech: probability that nobody speaks, of models that say it.
    """

    min_confidence: float = -1.0
    max_compression: float = 2.4
    max_no_speech: float = 0.6

    def reason_against(self, heard: "Heard") -> str:
        """Why a label is left out, or ""."""
        if not heard.text:
            return "nothing heard"
        if heard.no_speech is not None and heard.no_speech > self.max_no_speech:
            return "no speech"
        if heard.confidence < self.min_confidence:
            return "low confidence"
        return "repeats itself" if compression_ratio(heard.text) > self.max_compression else ""


class Label(Protocol):
    """What a recogniser says of a stretch of audio."""

    @property
    def text(self) -> str:
        """What is said, "" for nothing."""
        ...

    @property
    def language(self) -> str:
        """Code, "" where it is not known."""
        ...

    @property
    def confidence(self) -> float:
        """Mean log-probability of the tokens."""
        ...

    @property
    def no_speech(self) -> float | None:
        """Probability that nobody speaks, of models that say it."""
        ...


class Recogniser(Protocol):
    """Waveforms to labels; see `speechlm.nn.hub_asr`."""

    sample_rate_hz: int

    def padded_seconds(self, seconds: float) -> float:
        """Seconds that a recording takes in a batch whose longest has so many."""
        ...

    def transcribe(self, audio: list[np.ndarray], languages: list[str]) -> Sequence[Label]:
        """Each (N,) waveform, and the code of its language or "", -> its label."""
        ...


@dataclass(frozen=True)
class Heard:
    """A stretch of a cut and what was heard in it; numbers are rounded to what means something."""

    position: int  # of the cut in its shard
    start: float  # seconds in the cut
    seconds: float
    text: str
    language: str
    confidence: float
    no_speech: float | None


def compression_ratio(text: str) -> float:
    """Bytes of a text over those of its zlib stream; 0 for no text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
