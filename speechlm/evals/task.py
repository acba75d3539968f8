"""What an evaluation is made of: items, phases that answer them, and a score that needs the answers alone.

A phase turns every item into a record, a plain JSON object. The first needs the model; a later one has the records of the one
before, such as the transcripts of speech that was generated. `score` sees items and last records, never a model, so what was
generated once is scored again under other flags for nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from speechlm.evals.items import Item, Unusable
from speechlm.evals.parts import Parts

Record = dict[str, Any]
Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Metric:
    """A number with its uncertainty.

    Attributes:
        name: what it is, flags in brackets.
        value: the number.
        low, high: 95 % interval from resampling items; None where there is none.
        count: items it is made of.
        unit: such as "%".
        better: which way is better, "" where neither.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    count: int
    unit: str = ""
    better: Better = ""


@dataclass(frozen=True)
class Example:
    """An item to look at and listen to.

    Attributes:
        id: of the item.
        facts: names and values.
        sounds: captions and audio files.
    """

    id: str
    facts: dict[str, str]
    sounds: dict[str, Path] = field(default_factory=dict)


@dataclass
class Scored:
    """What the records of a task say."""

    metrics: list[Metric]
    examples: list[Example] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)  # reason -> ids that no metric counts


@dataclass(frozen=True)
class Place:
    """Where a phase works: the items' folder, and its own for files that records name."""

    items: Path
    files: Path


class Task:
    """One evaluation; what differs is in a subclass.

    Attributes:
        phases: in order.
        uses: parts of the model that a phase needs, by phase; the hash of each tells its records from others.
        shard: items that are answered together, the same whoever does it, so that numbers do not depend on ranks or restarts.
    """

    phases: tuple[str, ...] = ("answers",)
    uses: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    shard: int = 64
    items: str = ""

    def check(self, item: Item) -> str:
        """Why an item can not be asked, "" where it can."""
        return ""

    def settings(self, phase: str) -> dict[str, Any]:
        """Plain values that change the records of a phase."""
        return {}

    def scoring(self) -> dict[str, Any]:
        """Plain values that change the score of given records."""
        return {}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """One record per item, in order; `before` are those of the phase before, empty for the first.

        An item that failed has a record with `problem`, and `detail`.
        """
        raise NotImplementedError

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Metrics, examples, and what could not be counted."""
        raise NotImplementedError


def problem(error: Unusable) -> Record:
    """The record of an item that failed."""
    return {"problem": error.reason, "detail": str(error)[:300]}


def each(items: Sequence[Item], make: Callable[[Item], Any]) -> tuple[dict[int, Any], dict[int, Record]]:
    """What `make` gives for every item, by its number, and the records of those it refuses."""
    made: dict[int, Any] = {}
    failed: dict[int, Record] = {}
    for number, item in enumerate(items):
        try:
            made[number] = make(item)
        except Unusable as error:
            failed[number] = problem(error)
    return made, failed


def usable(items: Sequence[Item], records: Sequence[Record]) -> tuple[list[tuple[Item, Record]], dict[str, list[str]]]:
    """Items with a record that can be counted, and the ids of the others by reason."""
    good, bad = [], dict[str, list[str]]()
    for item, record in zip(items, records, strict=True):
        if record.get("problem"):
            bad.setdefault(record["problem"], []).append(item["id"])
        else:
            good.append((item, record))
    return good, bad


def first_by(rows: Sequence[Any], count: int = 6) -> list[Any]:
    """Up to `count` rows, evenly over all."""
    return list(rows[:: max(1, -(-len(rows) // count))]) if rows else []
