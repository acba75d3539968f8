"""Recordings through tokens and back to sound: does it say the same, in the same voice, as well?

The protocol of the published tables: WER by a recogniser that is no part of the model, ViSQOL and a predicted MOS;
speaker similarity, STOI and PESQ beside them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm.evals.error_rates import error_metrics
from speechlm.evals.hearing import heard, read_sound, saved_sound, transcripts
from speechlm.evals.items import Item, load_audio
from speechlm.evals.parts import Parts
from speechlm.evals.prompts import RATE_HZ
from speechlm.evals.quality import grades, quality_metrics
from speechlm.evals.task import Example, Place, Record, Scored, Task, each, first_by, usable


class Resynthesis(Task):
    """Recordings with transcripts.

    Args:
        items: file with `speech`, that has audio and `text`, and `language`.
        quality: names of metrics, see `speechlm.evals.quality`.
        listeners: languages that recognisers are needed for.
        shard: recordings that are decoded together.
        limit: recordings at most.
    """

    phases = ("speech", "transcripts")

    def __init__(
        self,
        items: str,
        quality: list[str] = ["stoi", "pesq", "visqol", "dnsmos", "speaker_similarity"],  # noqa: B006 - never changed
        listeners: list[str] = ["en"],  # noqa: B006
        shard: int = 16,
        limit: int | None = None,
    ) -> None:
        self.items, self.quality, self.listeners, self.shard, self.limit = items, quality, listeners, shard, limit
        graded = [f"quality {name}" for name in quality]
        self.uses = {"speech": ("codes", "decoder"), "transcripts": (*graded, *(f"listener {c}" for c in listeners))}

    def check(self, item: Item) -> str:
        """Audio and its transcript, in a language that somebody listens to."""
        speech = item.get("speech")
        if not (isinstance(speech, dict) and speech.get("audio")):
            return "no audio"
        if not str(speech.get("text", "")).strip():
            return "no transcript to compare with"
        return "" if item.get("language", "en") in self.listeners else "no recogniser for its language"

    def settings(self, phase: str) -> dict[str, Any]:
        """Of judging alone."""
        return {"quality": self.quality, "listeners": self.listeners} if phase == "transcripts" else {}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """Sound; then transcripts and grades of it and of the recordings."""
        audio, failed = each(items, lambda item: load_audio(item["speech"], place.items, RATE_HZ))
        if phase == "speech":
            codes = [[int(c) for c in one] for one in parts.tokens.tokenize(list(audio.values()))]
            sounds = dict(zip(audio, parts.decoder.sound(codes), strict=True))
            names = {n: saved_sound(items[n]["id"], "made", sounds[n], parts, place) for n in sounds}
            return [{"sound": names[n]} if n in names else failed[n] for n in range(len(items))]
        records = [dict(record) for record in before]
        good = [n for n in audio if not records[n].get("problem")]
        languages = [items[n].get("language", "en") for n in good]
        made = {n: read_sound(str(place.files / records[n]["sound"])) for n in good}
        texts = heard([made[n][0] for n in good], languages, parts)
        plain = transcripts([audio[n] for n in good], languages, parts)
        for n, text, original in zip(good, texts, plain, strict=True):
            graded = grades(self.quality, *made[n], audio[n], parts)
            records[n] |= {"text": text, "of_recording": original, "quality": graded}
        return records

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Error rates of what was made and of the recordings, and the means of the grades."""
        good, problems = usable(items, records)
        references = [item["speech"]["text"] for item, _ in good]
        codes = [item.get("language", "en") for item, _ in good]
        groups = [item.get("group", "") for item, _ in good]
        metrics = error_metrics(references, [r["text"] for _, r in good], codes, groups=groups)
        metrics += error_metrics(references, [r["of_recording"] for _, r in good], codes, "recordings:", groups)
        metrics += quality_metrics([record for _, record in good])
        return Scored(metrics, [_example(i, r, files) for i, r in first_by(good)], problems)


def _example(item: Item, record: Record, files: Path) -> Example:
    facts = {"text": item["speech"]["text"], "heard": record["text"]}
    facts |= {name: f"{value:.2f}" for name, value in record["quality"].items() if value is not None}
    return Example(item["id"], facts, {"made": files / record["sound"]})
