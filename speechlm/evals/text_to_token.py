"""The text-to-token model: does its speech say the text, and how far are its tokens from a recording's? VCTK in the paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm.evals.error_rates import error_metrics
from speechlm.evals.items import Item
from speechlm.evals.parts import Parts
from speechlm.evals.spoken_texts import SpokenTexts
from speechlm.evals.task import Place, Record, Scored, usable
from speechlm.tokens.templates import Template


class TextToTokens(SpokenTexts):
    """Texts spoken by the text-to-token model.

    Args:
        items: see `SpokenTexts`.
        template: of the rows the model was trained on; null is the default of `tts`.
        voice: who speaks, where the template has {voice}.
        read: also have the speech tokenizer's own decoder write down the tokens, and those of recordings beside them: what a
            model's tokens say before any waveform, and without the decoder's faults.
        quality: see `SpokenTexts`.
        listeners: see `SpokenTexts`.
        shard: see `SpokenTexts`.
        limit: see `SpokenTexts`.
    """

    def __init__(
        self,
        items: str,
        template: Template | None = None,
        voice: str = "",
        read: bool = False,
        quality: list[str] = [],  # noqa: B006 - never changed
        listeners: list[str] = ["en"],  # noqa: B006
        shard: int = 32,
        limit: int | None = None,
    ) -> None:
        self.template, self.voice, self.read = template, voice, read
        super().__init__(items, quality, listeners, shard, limit)

    def speaker(self) -> tuple[str, ...]:
        """The text-to-token model, and the tokenizer for recordings; the whole of it where it reads."""
        return ("text_to_token", "codes", "tokens") if self.read else ("text_to_token", "codes")

    def settings(self, phase: str) -> dict[str, Any]:
        """What is asked, too."""
        if phase != "speech":
            return super().settings(phase)
        template = self.template and {"prompt": self.template.prompt, "target": self.template.target}
        return {"template": template, "voice": self.voice, "read": self.read, **super().settings(phase)}

    def speak(self, texts: list[str], languages: list[str], parts: Parts) -> list[list[int] | None]:
        """As in bulk synthesis, with its checks."""
        return parts.text_to_token.speak(texts, languages, self.template, self.voice)

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """Codes come with what the tokenizer reads in them."""
        records = super().answer(phase, items, before, parts, place)
        if phase == "speech" and self.read:
            languages = [item.get("language", "en") for item in items]
            for codes, name in (("codes", "read"), ("recorded", "recorded_read")):
                there = [n for n, record in enumerate(records) if record[codes]]
                texts = parts.tokens.read([records[n][codes] for n in there], [languages[n] for n in there])
                for n, text in zip(there, texts, strict=True):
                    records[n][name] = text
        return records

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Error rates of what was read, made and recorded, before what was heard."""
        scored = super().score(items, records, files)
        good, _ = usable(items, records)
        for key, name, of in (
            ("read", "tokens read,", good),
            ("recorded_read", "recordings' tokens read,", _recorded(good)),
        ):
            if self.read and of:
                references = [item["speech"]["text"] for item, _ in of]
                languages = [item.get("language", "en") for item, _ in of]
                found = [record.get(key, "") for _, record in of]
                scored.metrics.extend(error_metrics(references, found, languages, name, clip=True))
        return scored


def _recorded(good: list[tuple[Item, Record]]) -> list[tuple[Item, Record]]:
    return [(item, record) for item, record in good if record.get("recorded")]
