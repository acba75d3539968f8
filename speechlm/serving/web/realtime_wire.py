"""Settings that a client of live voice may send: the part of OpenAI's Realtime interface that a voice has an answer to."""

from typing import Annotated, Literal

from pydantic import Field

from speechlm.serving.turns import TurnSettings
from speechlm.serving.web.wire import Strict

Modality = Literal["audio", "text"]
Rate = Annotated[int, Field(ge=8000, le=96_000)]


class Format(Strict):
    """Raw 16-bit samples."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Rate = 24_000


class TurnDetection(Strict):
    """When the server takes a turn to be over."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = None

    def settings(self) -> TurnSettings:
        """As the voice session takes them."""
        return TurnSettings(self.threshold, self.prefix_padding_ms, self.silence_duration_ms)


class Transcription(Strict):
    """That what the user says is written down, by the tokenizer's own decoder."""

    model: str = Field(default="", max_length=64)
    language: str | None = Field(default=None, max_length=16)


class Input(Strict):
    """What the user says."""

    format: Format = Format()
    turn_detection: TurnDetection | None = TurnDetection()
    transcription: Transcription | None = None
    noise_reduction: None = None


class Output(Strict):
    """What is said to the user."""

    format: Format = Format()
    voice: str = Field(default="", max_length=64)
    speed: Literal[1] = 1


class Audio(Strict):
    """Both directions."""

    input: Input = Input()
    output: Output = Output()


def _sound() -> list[Modality]:
    return ["audio"]


class SessionSettings(Strict):
    """A session's settings; what an update does not name stays as it is."""

    type: Literal["realtime"] = "realtime"
    model: str = Field(default="", max_length=256)
    instructions: str | None = Field(default=None, max_length=100_000)
    output_modalities: list[Modality] = Field(default_factory=_sound, min_length=1, max_length=1)
    audio: Audio = Audio()
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_output_tokens: Annotated[int, Field(ge=1, le=65_536)] | Literal["inf"] = "inf"
    tools: list[None] = Field(default_factory=list, max_length=0)
    tool_choice: Literal["auto", "none"] = "auto"


class ResponseSettings(Strict):
    """Of one reply."""

    instructions: str | None = Field(default=None, max_length=100_000)
    output_modalities: Annotated[list[Modality], Field(min_length=1, max_length=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=65_536)] | Literal["inf"] | None = None
    metadata: dict[str, str] | None = None


def merged(old: dict, new: dict) -> dict:
    """Settings with others laid over them, section by section."""
    both = {**old, **new}
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            both[name] = merged(old[name], value)
    return both
