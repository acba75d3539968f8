"""A conversation: hears, replies in text and speech as they are made, is interrupted, and remembers.

No web framework, no event loop: calls do their work in the caller's thread. One thread hears while another goes through a reply.

    session = VoiceSession(voice)
    session.hear(audio); session.commit()          # or: for event in session.listen(audio)
    for event in session.reply():                  # TextDelta, AudioDelta
        ...
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from speechlm.serving.ear import Ear
from speechlm.serving.history import History, cut_speech
from speechlm.serving.reply import Reply, Times, Wish
from speechlm.serving.turns import TurnDetector, TurnEvent, TurnSettings
from speechlm.serving.voice import Voice
from speechlm.tokens.chat_templates import Turn


class VoiceSession:
    """One conversation over a voice that others use too.

    Args:
        voice: see `Voice`.
        instructions: what the system says; null is the voice's own.
        turns: when a turn begins and ends.

    Raises:
        ValueError: the instructions are too long.
    """

    def __init__(self, voice: Voice, instructions: str | None = None, turns: TurnSettings | None = None) -> None:
        self.voice = voice
        self.history = History(voice.limits.turns)
        self.instruct(voice.instructions if instructions is None else instructions)
        self.replying: Reply | None = None
        self.heard_hz = voice.input_hz
        self._heard = 0  # samples
        self._ear: Ear | None = None
        self._utterance: list[np.ndarray] = []
        self.last_utterance = np.zeros(0, np.float32)  # waveform of the last turn that was heard
        self._hear_sec = 0.0
        self.set_turns(turns or TurnSettings())

    def instruct(self, instructions: str) -> None:
        """Set what the system says; "" leaves it to the template.

        Raises:
            ValueError: it is too long.
        """
        self.history.system = self.voice.written("system", instructions) if instructions.strip() else None

    def set_turns(self, settings: TurnSettings) -> None:
        """Listen anew, with these settings."""
        self._detector = TurnDetector(self.voice.open_activity(), settings)
        self._before = np.zeros(0, np.float32)  # what may turn out to be the beginning of a turn
        self._offset = self._heard

    # -- hearing -------------------------------------------------------------------------------------------------------

    def hear(self, audio: np.ndarray) -> None:
        """(N,) further samples of an utterance, whose end `commit` says.

        Raises:
            ValueError: it is longer than an utterance may be; it is forgotten.
        """
        limit = round(self.voice.limits.audio_sec * self.heard_hz)
        self._ear = self._ear or self.voice.ear()
        if self._ear.num_samples + len(audio) > limit:
            self.forget()
            raise ValueError(f"an utterance has at most {self.voice.limits.audio_sec:g} s")
        self._utterance.append(audio)
        self._ear.push(audio)

    def listen(self, audio: np.ndarray) -> Iterator[TurnEvent]:
        """(N,) further samples of a microphone that is always open; turns are found in them.

        At "started" somebody speaks, at "stopped" what they said is a turn of the history. A turn that becomes longer than an
        utterance may be ends there.
        """
        for begin in range(0, len(audio), 1600):
            yield from self._listen(audio[begin : begin + 1600])

    def _listen(self, audio: np.ndarray) -> Iterator[TurnEvent]:
        self._heard += len(audio)
        events = list(self._detector.push(audio))
        if self._ear is not None:
            self.hear(audio)
        else:
            self._before = np.concatenate([self._before, audio])
        for event in events:
            here = event._replace(sample=event.sample + self._offset)
            if event.kind == "started":
                self._start(here.sample)
            elif self._ear is not None:
                self.commit()
            yield here
        if self._ear is None:
            self._trim()
        elif self._ear.num_samples + 3200 > self.voice.limits.audio_sec * self.heard_hz:
            self.commit()
            self.set_turns(self._detector.settings)
            yield TurnEvent("stopped", self._heard)

    def _start(self, sample: int) -> None:
        """The utterance begins a little before its first frame of speech."""
        padding = self._detector.settings.prefix_padding_ms * self.heard_hz // 1000
        wanted = self._heard - sample + padding
        audio, self._before = self._before[-wanted:], self._before[:0]
        self.hear(audio)

    def _trim(self) -> None:
        settings = self._detector.settings
        kept = (settings.prefix_padding_ms + settings.min_speech_ms + 200) * self.heard_hz // 1000
        self._before = self._before[-kept:]

    def commit(self) -> Turn | None:
        """The utterance is over: it is a turn of the history, None where nothing was said."""
        if self._ear is None:
            return None
        began = time.monotonic()
        codes = self._ear.finish()
        self._hear_sec = time.monotonic() - began
        self.last_utterance = np.concatenate(self._utterance)
        self.forget()
        if not len(codes):
            return None
        turn = Turn("user", (("speech", codes),))
        self.history.append(turn)
        return turn

    def forget(self) -> None:
        """What has been heard of an utterance is no part of the conversation."""
        self._ear, self._utterance = None, []

    def write(self, text: str) -> int:
        """A turn that is typed; its number in the history.

        Raises:
            ValueError: it is too long, or says nothing.
        """
        number = self.history.append(self.voice.written("user", text))
        self._hear_sec = 0.0
        return number

    # -- replying ------------------------------------------------------------------------------------------------------

    def reply(self, wish: Wish = Wish()) -> Reply:  # noqa: B008 - frozen
        """Begin a reply to the conversation; one that is under way is interrupted. It becomes a turn by `remember`.

        Raises:
            ValueError: nothing was said yet, or the last turn alone does not fit.
            EngineBusy: too many replies are waiting.
            EngineFailed: there is no engine to be reached.
        """
        self.interrupt()
        ids = self.history.fitting(self.voice.template, self.voice.engine.max_length, self.voice.limits.reply_ids)
        if self.voice.speakers and wish.speaker not in self.voice.speakers:
            wish = replace(wish, speaker=self.voice.speakers[0])
        self.replying = Reply(self.voice, ids, wish, Times(hear=self._hear_sec))
        return self.replying

    def interrupt(self) -> None:
        """Stop the reply that is under way."""
        if self.replying is not None:
            self.replying.stop()

    def remember(self, reply: Reply) -> int:
        """A reply that is over, or was interrupted, becomes a turn; its number in the history."""
        if self.replying is reply:
            self.replying = None
        return self.history.append(reply.turn)

    def truncate(self, number: int, played_sec: float) -> None:
        """Of a reply only so much was heard: what was not is no part of the conversation."""
        tokens = self.voice.output_clock.num_tokens(max(0, round(played_sec * self.voice.output_hz)))
        self.history.replace(number, lambda turn: cut_speech(turn, tokens))
