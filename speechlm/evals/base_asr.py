"""Speech recognition of the language model itself: the prompt it was pre-trained with, and the words that follow."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from speechlm.evals.error_rates import error_metrics
from speechlm.evals.items import Item
from speechlm.evals.pairs import has
from speechlm.evals.parts import Parts, Piece
from speechlm.evals.prompts import Codes, filled
from speechlm.evals.task import Example, Place, Record, Scored, Task, each, first_by, usable
from speechlm.tokens.templates import TEMPLATES


class BaseASR(Task):
    """Recordings with transcripts: LibriSpeech (WER), AISHELL-1 (CER).

    Args:
        items: file with `speech`, that has its `text`, and `language`; `group` is the part of the corpus.
        template: prompt with the slot {speech}; the default is that of the rows.
        max_text: text ids at most.
        english: text is made of English tokens alone.
        shard: recordings that are transcribed together.
        limit: recordings at most.
    """

    uses = MappingProxyType({"answers": ("lm", "codes")})

    def __init__(
        self,
        items: str,
        template: str = TEMPLATES["asr"].prompt,
        max_text: int = 256,
        english: bool = False,
        shard: int = 32,
        limit: int | None = None,
    ) -> None:
        self.items, self.template, self.max_text, self.english = items, template, max_text, english
        self.shard, self.limit = shard, limit

    def check(self, item: Item) -> str:
        """Speech and its transcript."""
        if not has(item.get("speech"), "S"):
            return "no speech"
        return "" if item["speech"].get("text", "").strip() else "no transcript to compare with"

    def settings(self, phase: str) -> dict[str, Any]:
        """The prompt."""
        return {"template": self.template, "max_text": self.max_text, "english": self.english}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """Transcripts."""
        codes = Codes(items, ["speech"], parts, place)

        def prompt(item: Item) -> list[int]:
            speech = [Piece("speech", codes.of(item, "speech"))]
            return parts.lm.ids_of(filled(self.template, {"speech": speech}, parts.lm))

        prompts, failed = each(items, prompt)
        texts = parts.lm.write(list(prompts.values()), self.max_text, self.english)
        made = {n: {"text": text} for n, text in zip(prompts, texts, strict=True)}
        return [made[n] if n in made else failed[n] for n in range(len(items))]

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Error rate of every language and part."""
        good, problems = usable(items, records)
        references = [item["speech"]["text"] for item, _ in good]
        codes, groups = (
            zip(*[(i.get("language", ""), i.get("group", "")) for i, _ in good], strict=True) if good else ((), ())
        )
        metrics = error_metrics(references, [record["text"] for _, record in good], codes, groups=groups)
        facts = [(i["id"], {"reference": i["speech"]["text"], "transcript": r["text"]}) for i, r in first_by(good)]
        return Scored(metrics, [Example(*fact) for fact in facts], problems)
