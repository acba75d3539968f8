"""Texts that a model speaks: what every judgement of text-to-speech has in common.

Texts become codes, codes become sound, and a recogniser that is no part of the model writes it down: the error rate of
that against the text. Where the items have recordings of the same texts, the codes are compared with theirs too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm.evals.bootstrap import percent, ratio
from speechlm.evals.error_rates import error_metrics
from speechlm.evals.hearing import heard, read_sound, saved_sound
from speechlm.evals.items import Item
from speechlm.evals.parts import Parts
from speechlm.evals.prompts import Codes
from speechlm.evals.quality import grades, quality_metrics
from speechlm.evals.task import Example, Place, Record, Scored, Task, first_by, usable
from speechlm.evals.token_agreement import edit_distance


class SpokenTexts(Task):
    """Texts, spoken by a part of the model that a subclass names.

    Args:
        items: file with `speech`, that has a `text`, perhaps also audio or tokens, and `language`.
        quality: names of metrics without a reference, see `speechlm.evals.quality`.
        listeners: languages that recognisers are needed for.
        shard: texts that are spoken together.
        limit: texts at most.
    """

    phases = ("speech", "transcripts")

    def __init__(
        self,
        items: str,
        quality: list[str] = [],  # noqa: B006 - never changed
        listeners: list[str] = ["en"],  # noqa: B006
        shard: int = 32,
        limit: int | None = None,
    ) -> None:
        self.items, self.quality, self.listeners, self.shard, self.limit = items, quality, listeners, shard, limit
        graded = [f"quality {name}" for name in quality]
        self.uses = {
            "speech": self.speaker(),
            "transcripts": ("decoder", *graded, *(f"listener {language}" for language in listeners)),
        }

    def speaker(self) -> tuple[str, ...]:
        """Parts that speak."""
        raise NotImplementedError

    def speak(self, texts: list[str], languages: list[str], parts: Parts) -> list[list[int] | None]:
        """Codes of every text, None where there is no end or no sense."""
        raise NotImplementedError

    def check(self, item: Item) -> str:
        """A text, in a language that somebody listens to."""
        if not (isinstance(item.get("speech"), dict) and str(item["speech"].get("text", "")).strip()):
            return "no text"
        return "" if item.get("language", "en") in self.listeners else "no recogniser for its language"

    def settings(self, phase: str) -> dict[str, Any]:
        """Of judging alone."""
        return {"quality": self.quality, "listeners": self.listeners} if phase == "transcripts" else {}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """Codes, with those of the recording where there is one; then sound, transcripts and grades."""
        languages = [item.get("language", "en") for item in items]
        if phase == "transcripts":
            return self._judged(items, before, languages, parts, place)
        said = self.speak([item["speech"]["text"] for item in items], languages, parts)
        recorded = Codes(items, ["speech"], parts, place).found
        return [
            {"codes": codes, "recorded": _codes_or_none(recorded.get((item["id"], "speech")))}
            for item, codes in zip(items, said, strict=True)
        ]

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Error rates; a text that was not spoken to an end counts all its words as errors."""
        good, problems = usable(items, records)
        references = [item["speech"]["text"] for item, _ in good]
        languages = [item.get("language", "en") for item, _ in good]
        groups = [item.get("group", "") for item, _ in good]
        metrics = error_metrics(references, [r.get("text", "") for _, r in good], languages, groups=groups)
        if good:
            metrics.append(percent("texts not spoken to an end", [r["codes"] is None for _, r in good], "lower"))
        both = [(r["codes"], r["recorded"]) for _, r in good if r["codes"] and r.get("recorded")]
        if both:
            errors = [edit_distance(np.asarray(made), np.asarray(real)) for made, real in both]
            lengths = [len(real) for _, real in both]
            metrics.append(ratio("token error rate", errors, lengths, "%", "lower", 100.0))
            metrics.append(ratio("tokens made to tokens recorded", [len(made) for made, _ in both], lengths))
        metrics += quality_metrics([record for _, record in good])
        return Scored(metrics, [_example(i, r, files) for i, r in first_by(good)], problems)

    def _judged(
        self, items: list[Item], before: list[Record], languages: list[str], parts: Parts, place: Place
    ) -> list[Record]:
        records = [dict(record) for record in before]
        spoken = [n for n, record in enumerate(records) if record.get("codes")]
        sounds = parts.decoder.sound([records[n]["codes"] for n in spoken])
        texts = heard(sounds, [languages[n] for n in spoken], parts)
        for n, audio, text in zip(spoken, sounds, texts, strict=True):
            name = saved_sound(items[n]["id"], "spoken", audio, parts, place)
            saved, rate = read_sound(str(place.files / name))
            records[n] |= {"sound": name, "text": text, "quality": grades(self.quality, saved, rate, None, parts)}
        return records


def _codes_or_none(found: Any) -> list[int] | None:
    return found if isinstance(found, list) else None


def _example(item: Item, record: Record, files: Path) -> Example:
    facts = {"text": item["speech"]["text"], "heard": record.get("text", "(not spoken to an end)")}
    return Example(item["id"], facts, {"spoken": files / record["sound"]} if record.get("sound") else {})
