"""One reply: ids in, text and sound out as they become final, and what of it took how long."""

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from speechlm.engines.base import Sampling
from speechlm.engines.streaming import Ask, IdStream, Kind
from speechlm.serving.voice import Voice
from speechlm.tokens.chat_templates import Turn


class TextDelta(NamedTuple):
    """More of a reply's text."""

    text: str


class AudioDelta(NamedTuple):
    """More of a reply's sound."""

    samples: np.ndarray  # (N,) float32 at the voice's output rate


def fresh_seed() -> int:
    """For a reply that nobody asked to be repeatable."""
    return secrets.randbelow(2**31)


@dataclass
class Times:
    """What passed between the end of speech and the first sound, in seconds; their sum is the latency.

    Args:
        hear: the last tokens of what was said.
        wait: the reply's turn at the language model, and its prompt, up to the first id.
        think: the ids of the first chunk.
        decode: its mel.
        speak: its samples.
    """

    hear: float = 0.0
    wait: float = 0.0
    think: float = 0.0
    decode: float = 0.0
    speak: float = 0.0

    @property
    def total(self) -> float:
        """From the end of speech to the first samples."""
        return self.hear + self.wait + self.think + self.decode + self.speak


@dataclass(frozen=True)
class Wish:
    """What one reply is to be like.

    Args:
        sampling: null is the voice's own, with a seed of its own.
        max_new: ids at most; null is the voice's limit.
        speaker: name of a voice; "" is the first.
        silent: text alone is wanted: no sound is made, and the reply is over when its text is.
    """

    sampling: Sampling | None = None
    max_new: int | None = None
    speaker: str = ""
    silent: bool = False


class Reply:
    """One reply, made as it is gone through; only once.

    Attributes:
        end: "stop", "length", "invalid" (the model said what no reply can have), "interrupted" or "late"; "" until it is over.
        text: so far.
        num_samples: of sound, so far.
        times: see `Times`.
    """

    def __init__(self, voice: Voice, ids: np.ndarray, wish: Wish, times: Times) -> None:
        limits = voice.limits
        room = voice.engine.max_length - len(ids)
        max_new = min(wish.max_new or limits.reply_ids, limits.reply_ids, room)
        self.voice, self.times = voice, times
        self.end = ""
        self.text = ""
        self.num_samples = 0
        self.num_prompt, self.num_new = len(ids), 0
        self._parts: list[tuple[str, list[int]]] = []
        self._text_is_all = False
        self._stopped = threading.Event()
        self._began = time.monotonic()
        self._silent = wish.silent
        self._progress = voice.form.begin()
        self._mouth = voice.mouth(wish.speaker)
        sampling = wish.sampling or replace(voice.sampling, seed=fresh_seed())
        ask = Ask("reply", ids.tolist(), voice.form, sampling, max_new)
        self._ids: IdStream = voice.engine.open(ask)

    def __iter__(self) -> Iterator[TextDelta | AudioDelta]:
        """Go through it.

        Raises:
            EngineFailed: the engine died or stalled; what was said stands.
        """
        spelling, kinds, form = self.voice.spelling(), self.voice.kinds, self.voice.form
        late = self._began + self.voice.limits.reply_sec
        try:
            for shared_id in self._ids:
                if self._stopped.is_set() or time.monotonic() > late:
                    break
                self._mark_first()
                kind = kinds.kind(shared_id, form.end)
                self._progress.take(kind)
                if self._silent and self._progress.text_over:
                    self._text_is_all = True
                    break
                if kind is Kind.SPEECH:
                    yield from self._say(shared_id - self.voice.vocab.speech_offset)
                else:
                    yield from self._spell(spelling.push(shared_id), shared_id)
            yield from self._spell(spelling.finish())
            if not self._stopped.is_set() and time.monotonic() <= late:
                yield from self._close_mouth()
            self.end = self._how(late)
        finally:
            self.end = self.end or "interrupted"
            self._ids.close()

    def stop(self) -> None:
        """Interrupt it, from any thread."""
        self._stopped.set()
        self._ids.close()

    @property
    def turn(self) -> Turn:
        """What was said so far."""
        parts = tuple((kind, np.array(values, np.int64)) for kind, values in self._parts)
        return Turn("assistant", parts)

    def _spell(self, piece: str, text_id: int | None = None) -> Iterator[TextDelta]:
        if text_id is not None:
            self._append("text", text_id)
        self.text += piece
        if piece:
            yield TextDelta(piece)

    def _say(self, code: int) -> Iterator[AudioDelta]:
        self._append("speech", code)
        if not self._silent:
            yield from self._sound([code])

    def _close_mouth(self) -> Iterator[AudioDelta]:
        if self._mouth.num_codes:
            yield from self._sound([], last=True)

    def _sound(self, codes: list[int], last: bool = False) -> Iterator[AudioDelta]:
        before = time.monotonic()
        mel = self._mouth.frames(codes, last)
        between = time.monotonic()
        samples = self._mouth.samples(mel, last)
        first = not self.num_samples and len(samples) > 0
        if not self.num_samples:  # the first chunk's; pushes that only gather codes are part of thinking
            made = mel.shape[2] > 0
            self.times.decode += between - before if made else 0.0
            self.times.speak += time.monotonic() - between if made else 0.0
        if first:
            waited = self.times.decode + self.times.speak + self.times.wait
            self.times.think = time.monotonic() - self._began - waited
        self.num_samples += len(samples)
        if len(samples):
            yield AudioDelta(samples)

    def _append(self, kind: str, value: int) -> None:
        self.num_new += 1
        if not self._parts or self._parts[-1][0] != kind:
            self._parts.append((kind, []))
        self._parts[-1][1].append(value)

    def _mark_first(self) -> None:
        if not self.num_new:
            self.times.wait = time.monotonic() - self._began

    def _how(self, late: float) -> str:
        if self._stopped.is_set():
            return "interrupted"
        if self._text_is_all:
            return "stop"
        return "late" if time.monotonic() > late else self._ids.end
