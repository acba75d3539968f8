"""What `POST /v1/chat/completions` takes: the part of the OpenAI interface that a voice has an answer to; the rest is refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from speechlm.engines.base import Sampling
from speechlm.serving.reply import fresh_seed


class Strict(BaseModel):
    """Names that are not known are an error, not silence."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    """Something typed."""

    type: Literal["text"]
    text: str


class InputAudio(Strict):
    """A sound file."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus"]


class AudioPart(Strict):
    """Something spoken."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioReference(Strict):
    """A reply of this server, by its id."""

    id: str = Field(max_length=64)


class Message(BaseModel):
    """One turn. Clients send back messages as they got them, with fields of their own."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart | AudioPart], Field(max_length=64)] | None = None
    audio: AudioReference | None = None


class AudioChoice(Strict):
    """How a spoken reply is wanted."""

    format: Literal["wav", "mp3", "flac", "opus", "pcm16"] = "wav"
    voice: str | dict[str, Any] = Field(default="", max_length=64)


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Strict):
    """A conversation to be replied to."""

    model: str = Field(max_length=256)
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioChoice | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(default=None, ge=1, le=65_536)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=65_536)
    n: Literal[1] | None = None
    user: str | None = Field(default=None, max_length=256)
    store: bool | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _audio_goes_together(self) -> "ChatRequest":
        if self.audio is not None and not self.spoken:
            raise ValueError('`audio` says how a spoken reply is wanted; add "audio" to `modalities`')
        if self.stream and self.spoken and self.audio is not None and self.audio.format != "pcm16":
            raise ValueError('a stream of sound has `audio.format` "pcm16"')
        return self

    @property
    def spoken(self) -> bool:
        """Whether sound is wanted."""
        return "audio" in (self.modalities or ())

    @property
    def most(self) -> int | None:
        """Ids of the reply at most."""
        return self.max_completion_tokens or self.max_tokens

    def sampling(self, usual: Sampling) -> Sampling:
        """The voice's own, but for what is asked for."""
        return Sampling(
            temperature=usual.temperature if self.temperature is None else self.temperature,
            top_k=usual.top_k,
            top_p=usual.top_p if self.top_p is None else self.top_p,
            seed=fresh_seed() if self.seed is None else self.seed % 2**31,
        )
