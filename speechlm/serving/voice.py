"""The parts of a model that speaks, held together, and the limits that one conversation has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechlm.engines.base import Sampling
from speechlm.engines.id_kinds import IdKinds
from speechlm.engines.streaming import ReplyForm, StreamingEngine
from speechlm.nn.flow_stream import MelStream
from speechlm.nn.generator import Generator
from speechlm.serving.ear import Ear, Hearing
from speechlm.serving.spelling import Spelling
from speechlm.serving.turns import Activity
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.chat_templates import Chat, Turn
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab


@dataclass(frozen=True)
class Limits:
    """Bounds on one conversation.

    Args:
        audio_sec: longest utterance.
        text_chars: longest text of a turn.
        reply_ids: ids of a reply at most.
        reply_sec: longest time that a reply takes.
        turns: of a conversation that are remembered.
    """

    audio_sec: float = 60.0
    text_chars: int = 8000
    reply_ids: int = 1024
    reply_sec: float = 120.0
    turns: int = 64

    def __post_init__(self) -> None:
        if min(self.audio_sec, self.text_chars, self.reply_ids, self.reply_sec, self.turns) <= 0:
            raise ValueError(f"limits are above 0, got {self}")


class Mouth:
    """One reply's speech codes, made heard as they come.

    Args:
        mel: makes mel of codes.
        voice: makes samples of mel.
    """

    def __init__(self, mel: MelStream, voice: Any) -> None:
        self.mel, self.voice = mel, voice
        self.num_codes = 0

    @torch.no_grad()
    def frames(self, codes: Sequence[int], last: bool = False) -> Tensor:
        """Further codes -> (1, M, F) mel that is final now."""
        self.num_codes += len(codes)
        return self.mel.push(torch.tensor([list(codes)], dtype=torch.long, device=self.mel.seeds.device), last)

    @torch.no_grad()
    def samples(self, mel: Tensor, last: bool = False) -> np.ndarray:
        """Further mel -> (N,) float32 samples that are final now."""
        if not mel.shape[2] and not last:
            return np.zeros(0, np.float32)
        return self.voice.push(mel, last)[0].float().cpu().numpy()


@dataclass(frozen=True)
class Voice:
    """A model that listens and speaks; conversations share it.

    Args:
        name: of the model, for people.
        template_name: of the chat template, likewise.
        tokenizer: speech to codes.
        text: text to ids and back.
        vocab: of the language model's ids.
        template: conversation to ids.
        engine: generates replies.
        open_mel: speaker's name -> a stream of codes to mel.
        vocoder: mel to samples.
        output_clock: rates of what is spoken.
        open_activity: makes a judge of voice activity.
        speakers: names of voices; the first is spoken with where none is asked for.
        sampling: of replies, where a conversation does not say otherwise.
        instructions: what the conversation begins with, where it does not say otherwise; "" leaves it to the template.
        limits: of a conversation.
        device: of tokenizer, decoder and vocoder.
        whole_blocks: see `ReplyForm`.
        transcribe: waveform at the tokenizer's rate to text, where the tokenizer can.
    """

    name: str
    template_name: str
    tokenizer: Hearing
    text: TextTokenizer
    vocab: Vocab
    template: Chat
    engine: StreamingEngine
    open_mel: Callable[[str], MelStream]
    vocoder: Generator
    output_clock: Clock
    open_activity: Callable[[], Activity]
    speakers: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.2, top_p=0.8))
    instructions: str = ""
    limits: Limits = field(default_factory=Limits)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    whole_blocks: bool = False
    transcribe: Callable[[np.ndarray], str] | None = None

    @property
    def form(self) -> ReplyForm:
        """Of replies."""
        return ReplyForm(self.template.end, self.template.text_block, self.template.speech_block, self.whole_blocks)

    @property
    def kinds(self) -> IdKinds:
        """What ids are."""
        return IdKinds(self.vocab, self.text.specials.values())

    @property
    def input_hz(self) -> int:
        """Sample rate of what is heard."""
        return self.tokenizer.clock.sample_rate_hz

    @property
    def output_hz(self) -> int:
        """Sample rate of what is spoken."""
        return self.output_clock.sample_rate_hz

    def ear(self) -> Ear:
        """For one utterance."""
        return Ear(self.tokenizer, self.device)

    def mouth(self, speaker: str = "") -> Mouth:
        """For one reply."""
        return Mouth(self.open_mel(speaker), self.vocoder.stream())

    def spelling(self) -> Spelling:
        """For one reply's text."""
        return Spelling(self.text)

    def written(self, role: Any, text: str) -> Turn:
        """A turn that was typed.

        Raises:
            ValueError: it is too long, or says nothing.
        """
        if len(text) > self.limits.text_chars:
            raise ValueError(f"a text has at most {self.limits.text_chars} characters, got {len(text)}")
        if not text.strip():
            raise ValueError(f"the {role}'s text is empty")
        return Turn(role, (("text", self.text.encode([text])[0]),))

    def close(self) -> None:
        """Let go of the engine's threads and connections."""
        self.engine.close()
