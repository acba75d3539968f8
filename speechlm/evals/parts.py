"""What tasks ask of the parts of a model, and of the models that judge it; whoever has these is evaluated, ours or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from speechlm.tokens.templates import Template


class MissingPart(ValueError):
    """A part of the model, or a package, that a task needs is not there; says how to give it."""


@dataclass(frozen=True)
class Sum:
    """Negative log-likelihood of some of a sequence's ids, in nats.

    Attributes:
        nll: each given all before it, among all ids.
        masked: the same among the ids of its own kind, speech or text, the others impossible.
        count: ids.
    """

    nll: float
    masked: float
    count: int

    def plain(self) -> list[float]:
        """For JSON."""
        return [self.nll, self.masked, self.count]


class Likelihood(NamedTuple):
    """Of one sequence: all speech and text ids in it but the first id, and those of the ending alone."""

    whole: Sum
    ending: Sum


class Scorable(NamedTuple):
    """What is scored: ids, and where the ending begins."""

    ids: tuple[int, ...]
    ending: int


class Piece(NamedTuple):
    """A part of a prompt: text-tokenizer ids of text, codes of speech, or the name of a control token."""

    kind: str  # "text", "speech" or "control"
    value: Any


class LM(Protocol):
    """A language model of speech and text."""

    def encode(self, text: str) -> list[int]:
        """Text-tokenizer ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of text-tokenizer ids."""
        ...

    def ids_of(self, pieces: Sequence[Piece]) -> list[int]:
        """Shared ids."""
        ...

    def likelihoods(self, sequences: Sequence[Scorable]) -> list[Likelihood]:
        """Of each sequence, whatever else is scored with it."""
        ...

    def write(self, prompts: Sequence[list[int]], max_new: int, english: bool = False) -> list[str]:
        """Text that goes on from prompts of shared ids, up to the end of text."""
        ...

    def say(self, prompts: Sequence[list[int]], max_new: int) -> list[list[int] | None]:
        """Speech codes that go on from prompts, up to the end of audio; None where they do not end."""
        ...

    def reply(self, prompts: Sequence[list[int]], max_new: int, english: bool = False) -> list[tuple[str, list[int]]]:
        """Text and speech codes of a turn in which both alternate."""
        ...


class SpeechTokens(Protocol):
    """A speech tokenizer; one without a quantiser has 0 codes and transcribes only."""

    num_codes: int
    token_rate_hz: float
    longest_sec: float  # that it transcribes
    hash: str

    def tokenize(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of 16 kHz waveforms of any length."""
        ...

    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Transcripts through the bottleneck."""
        ...

    def read(self, codes: Sequence[Sequence[int]], languages: Sequence[str]) -> list[str]:
        """Transcripts of codes, whoever made them, without a waveform."""
        ...


class TextToSpeechTokens(Protocol):
    """A text-to-token model."""

    def speak(
        self, texts: Sequence[str], languages: Sequence[str], template: Template | None = None, voice: str = ""
    ) -> list[list[int] | None]:
        """Codes of each text, asked for by a template and in a voice, None where what came can not be its speech."""
        ...


class Decoder(Protocol):
    """Speech tokens to sound."""

    sample_rate_hz: int

    def sound(self, codes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Waveforms."""
        ...


class Listener(Protocol):
    """A recogniser of speech that judges, and is no part of the model."""

    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Transcripts of 16 kHz waveforms."""
        ...


class Parts(Protocol):
    """All of them; asking for one that was not given raises ValueError and says which flag gives it."""

    def hash_of(self, part: str) -> str:
        """What tells a part from any other of its kind; "" is never returned."""
        ...

    @property
    def lm(self) -> LM: ...
    @property
    def tokens(self) -> SpeechTokens: ...
    @property
    def text_to_token(self) -> TextToSpeechTokens: ...
    @property
    def decoder(self) -> Decoder: ...
    def listener(self, language: str) -> Listener: ...
    @property
    def judge(self) -> Any: ...
    def quality(self, name: str) -> Any: ...
