"""Text to speech of the language model itself, by the prompt it was pre-trained with: LibriTTS, Seed-TTS en and zh."""

from typing import Any

from speechlm.evals.parts import Parts
from speechlm.evals.prompts import filled, written
from speechlm.evals.spoken_texts import SpokenTexts
from speechlm.tokens.templates import TEMPLATES


class BaseTTS(SpokenTexts):
    """Texts spoken by the language model.

    Args:
        items: see `SpokenTexts`.
        template: prompt with the slot {text}, up to where speech begins; the default is that of the rows.
        max_speech: speech ids at most.
        quality: see `SpokenTexts`.
        listeners: see `SpokenTexts`.
        shard: see `SpokenTexts`.
        limit: see `SpokenTexts`.
    """

    def __init__(
        self,
        items: str,
        template: str = TEMPLATES["tts"].prompt + "<|begin_of_audio|>",
        max_speech: int = 500,
        quality: list[str] = [],  # noqa: B006 - never changed
        listeners: list[str] = ["en"],  # noqa: B006
        shard: int = 32,
        limit: int | None = None,
    ) -> None:
        self.template, self.max_speech = template, max_speech
        super().__init__(items, quality, listeners, shard, limit)

    def speaker(self) -> tuple[str, ...]:
        """The language model; codes of recordings are compared with its own."""
        return ("lm", "codes")

    def settings(self, phase: str) -> dict[str, Any]:
        """The prompt too."""
        return {"template": self.template, "max_speech": self.max_speech, **super().settings(phase)}

    def speak(self, texts: list[str], languages: list[str], parts: Parts) -> list[list[int] | None]:
        """Codes that go on from the prompt."""
        pieces = [filled(self.template, {"text": written(text, parts.lm)}, parts.lm) for text in texts]
        return parts.lm.say([parts.lm.ids_of(one) for one in pieces], self.max_speech)
