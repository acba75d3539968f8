"""What a run of the tour learnt, from what it logged."""

from pathlib import Path
from typing import NamedTuple

from callbacks.jsonl import read_metrics


class Learnt(NamedTuple):
    """A measure of a run over its steps."""

    name: str
    steps: list[int]
    values: list[float]

    @property
    def best(self) -> float:
        """The lowest value."""
        return min(self.values)


def learnt(run: Path, name: str) -> Learnt:
    """All values of a measure that a run has logged.

    Raises:
        ValueError: it has logged none.
    """
    found = sorted(read_metrics(run).get(name, {}).items())
    if not found:
        raise ValueError(f"{run} has logged no {name}")
    return Learnt(name, [step for step, _ in found], [value for _, value in found])


def measures(run: Path) -> list[str]:
    """Names of the losses, error rates and distances in mel that a run has validated."""
    validated = (name for name in read_metrics(run) if name.startswith("val/"))
    return sorted(name for name in validated if name.endswith(("/loss", "/wer", "/mel_l1")))
