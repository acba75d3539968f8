"""A spoken chatbot: General QA and Knowledge by a judge, how natural its speech is, and whether it says what it writes.

The judge reads the transcript of the speech, never the text of the model. ASR-WER compares that transcript with the
model's own text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from speechlm.evals.bootstrap import percent, ratio
from speechlm.evals.error_rates import error_metrics
from speechlm.evals.hearing import heard, read_sound, saved_sound
from speechlm.evals.items import Item, Unusable
from speechlm.evals.judge import GENERAL, KNOWLEDGE, judgment_of, rating_of
from speechlm.evals.pairs import has
from speechlm.evals.parts import Parts, Piece
from speechlm.evals.prompts import Codes, filled, written
from speechlm.evals.quality import grades, quality_metrics
from speechlm.evals.task import Example, Place, Record, Scored, Task, each, first_by, usable
from speechlm.tokens.chat_templates import CHAT_TEMPLATES

#: Of the released model (github.com/THUDM/GLM-4-Voice, web_demo.py); other prompts make it worse.
SYSTEM = CHAT_TEMPLATES["glm4voice"].instructions["speech"]


class Chat(Task):
    """Spoken instructions or questions.

    Args:
        items: file with `instruction`; `references` for knowledge.
        form: "general" is rated 1 to 10, "knowledge" is right or wrong by the references and shown times ten.
        template: of a turn, with the slots {system} and {instruction}.
        system: the system's words.
        max_new: ids of a reply at most, text and speech.
        english: text is made of English tokens alone.
        quality: of the speech, see `speechlm.evals.quality`.
        language: of the replies, for the recogniser.
        shard: turns that are answered together.
        limit: turns at most.
    """

    phases = ("replies", "transcripts", "verdicts")

    def __init__(
        self,
        items: str,
        form: Literal["general", "knowledge"] = "general",
        template: str = "<|system|>\n{system}<|user|>\n{instruction}<|assistant|>streaming_transcription\n",
        system: str = SYSTEM,
        max_new: int = 2000,
        english: bool = False,
        quality: list[str] = [],  # noqa: B006 - never changed
        language: str = "en",
        shard: int = 16,
        limit: int | None = None,
    ) -> None:
        self.items, self.form, self.template, self.system, self.max_new = items, form, template, system, max_new
        self.english, self.quality, self.language, self.shard, self.limit = english, quality, language, shard, limit
        graded = [f"quality {name}" for name in quality]
        self.uses = {
            "replies": ("lm", "codes"),
            "transcripts": ("decoder", f"listener {language}", *graded),
            "verdicts": ("judge",),
        }

    def check(self, item: Item) -> str:
        """A spoken instruction whose text the judge can read."""
        if not has(item.get("instruction"), "S"):
            return "no speech"
        if not item["instruction"].get("text", "").strip():
            return "no text for the judge"
        if self.form == "knowledge" and not item.get("references"):
            return "no references"
        return ""

    def settings(self, phase: str) -> dict[str, Any]:
        """The prompt; the judge's."""
        if phase == "replies":
            return {name: getattr(self, name) for name in ("template", "system", "max_new", "english")}
        if phase == "transcripts":
            return {"quality": self.quality, "language": self.language}
        return {"form": self.form, "prompt": GENERAL if self.form == "general" else KNOWLEDGE}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """Replies; their transcripts and grades; what the judge says of them."""
        if phase == "replies":
            return self._replies(items, parts, place)
        return (
            self._heard(items, before, parts, place) if phase == "transcripts" else self._judged(items, before, parts)
        )

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """The judge's score over replies it judged; a reply without speech gets the lowest, without asking."""
        good, problems = usable(items, records)
        scored = Scored([], problems=problems)
        verdicts = []
        for item, record in good:
            try:
                verdicts.append(self._verdict(record))
            except Unusable as error:
                problems.setdefault(error.reason, []).append(item["id"])
        if verdicts:
            name, scale = ("General QA (1-10)", 1.0) if self.form == "general" else ("Knowledge (0-10)", 10.0)
            scored.metrics.append(ratio(name, verdicts, better="higher", scale=scale))
        if good:
            scored.metrics.append(percent("replies without speech", [not r["codes"] for _, r in good], "lower"))
        both = [(r["text"], r["heard"]) for _, r in good if r["codes"] and r["text"].strip()]
        if both:
            references, hypotheses = zip(*both, strict=True)
            scored.metrics += error_metrics(references, hypotheses, [self.language] * len(both), "ASR of the reply:")
        scored.metrics += quality_metrics([record for _, record in good])
        scored.examples = [_example(item, record, files) for item, record in first_by(good)]
        return scored

    def _replies(self, items: list[Item], parts: Parts, place: Place) -> list[Record]:
        codes = Codes(items, ["instruction"], parts, place)

        def prompt(item: Item) -> list[int]:
            speech = [Piece("control", "<|begin_of_audio|>"), Piece("speech", codes.of(item, "instruction"))]
            slots = {
                "system": written(self.system, parts.lm) if self.system else [],
                "instruction": [*speech, Piece("control", "<|end_of_audio|>")],
            }
            return parts.lm.ids_of(filled(self.template, slots, parts.lm))

        prompts, failed = each(items, prompt)
        replies = parts.lm.reply(list(prompts.values()), self.max_new, self.english)
        made = {n: {"text": text, "codes": codes} for n, (text, codes) in zip(prompts, replies, strict=True)}
        return [made[n] if n in made else failed[n] for n in range(len(items))]

    def _heard(self, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        records = [dict(record) for record in before]
        said = [n for n, record in enumerate(records) if record.get("codes")]
        sounds = parts.decoder.sound([records[n]["codes"] for n in said])
        texts = heard(sounds, [self.language] * len(said), parts)
        for n, audio, text in zip(said, sounds, texts, strict=True):
            name = saved_sound(items[n]["id"], "reply", audio, parts, place)
            graded = grades(self.quality, *read_sound(str(place.files / name)), None, parts)
            records[n] |= {"sound": name, "heard": text, "quality": graded}
        return records

    def _judged(self, items: list[Item], before: list[Record], parts: Parts) -> list[Record]:
        records = []
        for item, record in zip(items, before, strict=True):
            if record.get("problem") or not record.get("heard", "").strip():
                records.append(record)
                continue
            asked = (GENERAL if self.form == "general" else KNOWLEDGE).format(
                instruction=item["instruction"]["text"],
                reply=record["heard"],
                references="\n".join(map(str, item.get("references") or [])),
            )
            try:
                records.append({**record, "verdict": parts.judge.ask(asked)})
            except Unusable as error:
                records.append({**record, "unjudged": error.reason, "detail": str(error)[:300]})
        return records

    def _verdict(self, record: Record) -> float:
        if record.get("unjudged"):
            raise Unusable(record["unjudged"])
        if "verdict" not in record:
            return 1.0 if self.form == "general" else 0.0  # nothing was heard
        return rating_of(record["verdict"]) if self.form == "general" else judgment_of(record["verdict"])


def _example(item: Item, record: Record, files: Path) -> Example:
    facts = {"instruction": item["instruction"]["text"], "written": record["text"], "heard": record.get("heard", "")}
    facts["judge"] = record.get("verdict", record.get("unjudged", "not asked"))
    return Example(item["id"], facts, {"reply": files / record["sound"]} if record.get("sound") else {})
