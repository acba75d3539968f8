"""Spoken questions without a book: Web Questions, Llama Questions, TriviaQA, answered in text (S->T) or in speech (S->S).

Speech is made heard by the decoder and written down by a recogniser that is no part of the model; the matcher then sees text in
either mode. What publications leave open is a flag here and part of the protocol: examples before the question, whether text
is restricted to English, whether the words of an answer must stand together, where the response is cut.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm.evals.bootstrap import percent
from speechlm.evals.hearing import heard, saved_sound
from speechlm.evals.items import Item, read_items
from speechlm.evals.pairs import Mode, has
from speechlm.evals.parts import Parts, Piece
from speechlm.evals.prompts import BEGIN, Codes, filled, spoken, written
from speechlm.evals.qa_matcher import matches
from speechlm.evals.task import Example, Place, Record, Scored, Task, each, first_by, usable


class SpokenQA(Task):
    """Questions with answers.

    Args:
        items: file with `question`, and `answers`: the gold answer and its aliases.
        modes: S->T, S->S, and T->T and T->S for comparison.
        shots: examples before each question, the first of `examples`.
        examples: file of items, with `question` and `answer`.
        template: how a question and its answer are written; the answer comes last.
        between: text between examples.
        english: text is made of English tokens alone.
        max_text: text ids of an answer at most.
        max_speech: speech ids of an answer at most.
        cut_at: a response in text ends before it; "" takes all of it.
        in_order: see `matches`.
        language: of answers, for the recogniser.
        shard: questions that are answered together.
        limit: questions at most.
    """

    def __init__(
        self,
        items: str,
        modes: list[Mode] = ["S->T", "S->S"],  # noqa: B006 - never changed
        shots: int = 0,
        examples: str = "",
        template: str = "{question}{answer}",
        between: str = "\n",
        english: bool = False,
        max_text: int = 64,
        max_speech: int = 250,
        cut_at: str = "\n",
        in_order: bool = False,
        language: str = "en",
        shard: int = 32,
        limit: int | None = None,
    ) -> None:
        if not template.endswith("{answer}"):
            raise ValueError(f"a template of questions ends with {{answer}}, got {template!r}")
        if (shots > 0) != bool(examples):
            raise ValueError(f"shots and examples are given together or not at all, got {shots} and {examples!r}")
        self.items, self.modes, self.shots, self.examples, self.template = items, modes, shots, examples, template
        self.between, self.english, self.max_text, self.max_speech = between, english, max_text, max_speech
        self.cut_at, self.in_order, self.language, self.shard, self.limit = cut_at, in_order, language, shard, limit
        speaks = any(mode[-1] == "S" for mode in modes)
        self.phases = ("answers", "transcripts") if speaks else ("answers",)
        self.uses = {"answers": ("lm", "codes"), "transcripts": ("decoder", f"listener {language}")}

    def check(self, item: Item) -> str:
        """A question in every modality that is asked, and an answer."""
        if not any(str(answer).strip() for answer in item.get("answers") or []):
            return "no answer to compare with"
        kinds = {mode[0] for mode in self.modes}
        return next((f"no question in modality {k}" for k in sorted(kinds) if not has(item.get("question"), k)), "")

    def settings(self, phase: str) -> dict[str, Any]:
        """What is asked, and how."""
        if phase == "transcripts":
            return {"language": self.language}
        names = ("modes", "shots", "template", "between", "english", "max_text", "max_speech")
        chosen = {name: getattr(self, name) for name in names}
        return {**chosen, "examples": read_items(self.examples).hash if self.examples else ""}

    def scoring(self) -> dict[str, Any]:
        """The matcher's flags."""
        return {"matcher": 1, "cut_at": self.cut_at, "in_order": self.in_order}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """Answers in every mode; then transcripts of those that were spoken."""
        if phase == "transcripts":
            return self._heard(items, before, parts, place)
        codes = Codes(items, ["question"], parts, place)
        records: list[Record] = [{} for _ in items]
        for mode in self.modes:
            shown = self._shown(mode, parts)
            prompts, failed = each(items, lambda i, m=mode, s=shown: self._prompt(i, m, s, codes, parts))  # type: ignore[misc]
            for n, record in failed.items():
                records[n].update(record)
            for n, made in zip(prompts, self._made(mode, list(prompts.values()), parts), strict=True):
                records[n][mode] = made
        return records

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Accuracy in every mode; speech that has no end counts as wrong, as silence does."""
        good, problems = usable(items, records)
        scored = Scored([], problems=problems)
        for mode in self.modes:
            rights = [self._right(item, record[mode]) for item, record in good]
            if rights:
                scored.metrics.append(percent(f"accuracy {mode}", rights))
            unended = [record[mode].get("codes", 0) is None for _, record in good]
            if mode[-1] == "S" and good:
                scored.metrics.append(percent(f"answers without an end {mode}", unended, "lower"))
        scored.examples = [self._example(item, record, files) for item, record in first_by(good)]
        return scored

    def _shown(self, mode: Mode, parts: Parts) -> list[Piece]:
        """Examples before every question, the same for all."""
        if not self.shots:
            return []
        file = read_items(self.examples, limit=self.shots)
        codes = Codes(file.items, ["question", "answer"], parts, Place(file.path.parent, Path()))
        pieces: list[Piece] = []
        for item in file.items:
            question = self._asked(item, mode[0], codes, parts)
            answer = spoken(codes.of(item, "answer")) if mode[-1] == "S" else written(item["answer"]["text"], parts.lm)
            pieces += filled(self.template + self.between, {"question": question, "answer": answer}, parts.lm)
        return pieces

    def _asked(self, item: Item, kind: str, codes: Codes, parts: Parts) -> list[Piece]:
        return spoken(codes.of(item, "question")) if kind == "S" else written(item["question"]["text"], parts.lm)

    def _prompt(self, item: Item, mode: Mode, shown: list[Piece], codes: Codes, parts: Parts) -> list[int]:
        question = self._asked(item, mode[0], codes, parts)
        opening = [BEGIN] if mode[-1] == "S" else []
        return parts.lm.ids_of(shown + filled(self.template, {"question": question, "answer": opening}, parts.lm))

    def _made(self, mode: Mode, prompts: list[list[int]], parts: Parts) -> list[Record]:
        if mode[-1] == "S":
            return [{"codes": codes} for codes in parts.lm.say(prompts, self.max_speech)]
        return [{"text": text} for text in parts.lm.write(prompts, self.max_text, self.english)]

    def _heard(self, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        records = [dict(record) for record in before]
        for mode in (mode for mode in self.modes if mode[-1] == "S"):
            spoken_by = {n: r[mode]["codes"] for n, r in enumerate(records) if r.get(mode, {}).get("codes")}
            sounds = dict(zip(spoken_by, parts.decoder.sound(list(spoken_by.values())), strict=True))
            names = {n: saved_sound(items[n]["id"], mode, audio, parts, place) for n, audio in sounds.items()}
            texts = heard(list(sounds.values()), [self.language] * len(sounds), parts)
            for n, text in zip(sounds, texts, strict=True):
                records[n][mode] = {**records[n][mode], "text": text, "sound": names[n]}
        return records

    def _right(self, item: Item, made: Record) -> float:
        response = made.get("text", "").strip()
        response = response.split(self.cut_at)[0] if self.cut_at else response
        return float(matches(response, [str(answer) for answer in item["answers"]], self.in_order))

    def _example(self, item: Item, record: Record, files: Path) -> Example:
        facts = {"question": item["question"].get("text", ""), "answers": ", ".join(map(str, item["answers"][:3]))}
        facts |= {mode: record[mode].get("text", "(no end)") for mode in self.modes}
        sounds: dict[str, Path] = {
            mode: files / record[mode]["sound"] for mode in self.modes if record[mode].get("sound")
        }
        return Example(item["id"], facts, sounds)
