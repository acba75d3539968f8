"""Which of two goes on better: accuracy of a likelihood, under every flag on which published protocols differ.

- per token or sum: whether the log-likelihood is divided by the number of scored ids;
- masked or not: whether ids of the other modality count as possible;
- ending or whole: whether the ending is scored given the context, or context and ending together.

A pair counts 1 where the right one is likelier, 0.5 where both are equal, 0 otherwise. A pair with nothing to score,
or a score that is not finite under any flag asked, is named and counted under none. "Equal" is within `tie_within`
of the larger score: rounding must not decide for the same sequence twice. With 0 the rule is slamkit's.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from speechlm.evals.bootstrap import percent
from speechlm.evals.items import Item, Unusable
from speechlm.evals.parts import Likelihood, Parts, Piece, Scorable
from speechlm.evals.prompts import BEGIN, END, Codes, spoken, written
from speechlm.evals.task import Example, Metric, Place, Record, Scored, Task, each, first_by, usable

Mode = Literal["S->S", "S->T", "T->S", "T->T"]
Span = Literal["ending", "whole"]
SIDES = ("positive", "negative")


class Pairs(Task):
    """Pairs with or without a context.

    Args:
        items: file with `positive`, `negative`, and `context` where there is one; `group` of each pair.
        modes: what the context and the endings are, S speech and T text; the second letter alone counts without a context.
        per_token: see above; the first of each flag is the headline.
        masked: see above.
        spans: see above; of pairs without a context there is only one.
        tie_within: share of the larger score that two scores may differ by and be equal.
        shard: pairs that are scored together.
        limit: pairs at most.
    """

    uses = MappingProxyType({"answers": ("lm", "codes")})

    def __init__(
        self,
        items: str,
        modes: list[Mode] = ["S->S"],  # noqa: B006 - never changed
        per_token: list[bool] = [True, False],  # noqa: B006
        masked: list[bool] = [False, True],  # noqa: B006
        spans: list[Span] = ["ending", "whole"],  # noqa: B006
        tie_within: float = 1e-6,
        shard: int = 64,
        limit: int | None = None,
    ) -> None:
        if not (modes and per_token and masked and spans) or tie_within < 0:
            raise ValueError("pairs need at least one value for each flag and tie_within >= 0")
        self.items, self.modes, self.shard, self.limit = items, modes, shard, limit
        self.per_token, self.masked, self.spans, self.tie_within = per_token, masked, spans, tie_within

    def check(self, item: Item) -> str:
        """Both sides must be there, in every modality that is asked."""
        fields = [*SIDES, *(["context"] if item.get("context") else [])]
        lacking = [f for f in fields for kind in self._kinds(f, item) if not has(item.get(f), kind)]
        return f"no {lacking[0]} in a modality that is asked" if lacking else ""

    def settings(self, phase: str) -> dict[str, Any]:
        """What is scored."""
        return {"modes": self.modes}

    def scoring(self) -> dict[str, Any]:
        """The flags."""
        return {"per_token": self.per_token, "masked": self.masked, "spans": self.spans, "tie_within": self.tie_within}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """Sums of log-likelihoods of both sides in every mode."""
        asked = [field for field in (*SIDES, "context") if any("S" in self._kinds(field, item) for item in items)]
        codes = Codes(items, asked, parts, place)
        made, failed = each(items, lambda item: self._sequences(item, codes, parts))
        flat = [sequence for rows in made.values() for sequence in rows]
        scores = iter(parts.lm.likelihoods(flat))
        records = {n: self._record([next(scores) for _ in rows]) for n, rows in made.items()}
        return [records[n] if n in records else failed[n] for n in range(len(items))]

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Accuracies under all flags over the same pairs, and of each group and mode under the first of the others."""
        good, problems = usable(items, records)
        flags = self._flags(any("context" in item for item, _ in good))
        rights: dict[str, list[float]] = {}  # by id, under each flag
        for item, record in good:
            try:
                rights[item["id"]] = [self._right(record, *one) for one in flags]
            except Unusable as error:
                problems.setdefault(error.reason, []).append(item["id"])
        if not rights:
            return Scored([], problems=problems)
        columns = zip(*rights.values(), strict=True)
        metrics = [percent(f"accuracy {_named(*one)}", right) for one, right in zip(flags, columns, strict=True)]
        first = {name: right[0] for name, right in rights.items()}
        for number, (mode, *others) in reversed(list(enumerate(flags))):
            if others == list(flags[0][1:]):
                named = f" [{mode}]" if len(self.modes) > 1 else ""
                metrics[number + 1 : number + 1] = _by_group(good, {n: r[number] for n, r in rights.items()}, named)
        return Scored(metrics, [_example(item, record, first) for item, record in first_by(good)], problems)

    def _kinds(self, field: str, item: Item) -> set[str]:
        """ "S" and "T" that the modes need of a field."""
        if field == "context":
            return {mode[0] for mode in self.modes}
        return {mode[-1] for mode in self.modes}

    def _sequences(self, item: Item, codes: Codes, parts: Parts) -> list[Scorable]:
        """Both sides in every mode."""
        found = []
        for mode, side in itertools.product(self.modes, SIDES):
            context = _pieces("context", mode[0], item, codes, parts) if item.get("context") else []
            ending = _pieces(side, mode[-1], item, codes, parts)
            found.append(_joined(context, ending, parts))
        return found

    def _record(self, scores: list[Likelihood]) -> Record:
        pairs = zip(itertools.product(self.modes, SIDES), scores, strict=True)
        record: Record = {}
        for (mode, side), found in pairs:
            record.setdefault(mode, {})[side] = {"whole": found.whole.plain(), "ending": found.ending.plain()}
        return record

    def _flags(self, with_context: bool) -> list[tuple[Mode, Span, bool, bool]]:
        spans: list[Span] = self.spans if with_context else ["ending"]
        return list(itertools.product(self.modes, spans, self.per_token, self.masked))

    def _right(self, record: Record, mode: Mode, span: Span, per_token: bool, masked: bool) -> float:
        positive, negative = (nll(record[mode][side][span], per_token, masked) for side in SIDES)
        return preferred(positive, negative, self.tie_within)


def nll(score: Sequence[float], per_token: bool, masked: bool) -> float:
    """One side's number, from its two sums and its count.

    Raises:
        Unusable: nothing was scored, or it is not finite.
    """
    value, count = score[1] if masked else score[0], score[2]
    if not count:
        raise Unusable("empty score")
    if not math.isfinite(value):
        raise Unusable("score is not finite")
    return value / count if per_token else value


def preferred(positive: float, negative: float, tie_within: float = 0.0) -> float:
    """1 where the positive one has the lower negative log-likelihood, 0.5 where they are equal, else 0."""
    if abs(positive - negative) <= tie_within * max(abs(positive), abs(negative)):
        return 0.5
    return float(positive < negative)


def _pieces(field: str, kind: str, item: Item, codes: Codes, parts: Parts) -> list[Piece]:
    return spoken(codes.of(item, field)) if kind == "S" else written(_spaced(field, item), parts.lm)


def _spaced(field: str, item: Item) -> str:
    """Text of a field; an ending follows its context after a blank."""
    text = str(item[field]["text"]).strip()
    return f" {text}" if text and field != "context" and item.get("context") else text


def _joined(context: list[Piece], ending: list[Piece], parts: Parts) -> Scorable:
    """One sequence; speech that follows speech goes on in the same stretch, with one beginning and one end."""
    if context and context[-1] == END and ending[0] == BEGIN:
        context, ending = context[:-1], ending[1:]
    before, after = parts.lm.ids_of(context), parts.lm.ids_of(ending)
    start = [] if before or ending[0].kind == "control" else parts.lm.ids_of([Piece("control", "<|assistant|>")])
    return Scorable(tuple(start + before + after), len(start) + len(before))


def has(said: Any, kind: str) -> bool:
    if not isinstance(said, dict):
        return False
    return bool(said.get("text")) if kind == "T" else bool(said.get("audio")) or said.get("tokens") is not None


def _named(mode: Mode, span: Span, per_token: bool, masked: bool) -> str:
    return f"[{mode}, {span}, {'per token' if per_token else 'sum'}, {'masked' if masked else 'unmasked'}]"


def _by_group(good: Sequence[tuple[Item, Record]], rights: dict[str, float], named: str) -> list[Metric]:
    groups: dict[str, list[float]] = {}
    for item, _ in good:
        if item.get("group") and item["id"] in rights:
            groups.setdefault(item["group"], []).append(rights[item["id"]])
    return [percent(f"accuracy of {name}{named}", values) for name, values in sorted(groups.items())]


def _example(item: Item, record: Record, rights: dict[str, float]) -> Example:
    texts = {field: str(item[field].get("text", "")) for field in ("context", *SIDES) if item.get(field)}
    facts = {name: text for name, text in texts.items() if text}
    right = rights.get(item["id"])
    return Example(item["id"], {**facts, "counted": "not counted" if right is None else f"{right:g}"})
