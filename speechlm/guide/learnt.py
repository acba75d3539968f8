"""What a run of the tour learnt, from what it logged."""

import json
from pathlib import Path
from typing import NamedTuple


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
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(int(row["step"]), float(row[name])) for row in map(json.loads, lines) if name in row]
    if not found:
        raise ValueError(f"{run} has logged no {name}")
    return Learnt(name, [step for step, _ in found], [value for _, value in found])


def measures(run: Path) -> list[str]:
    """Names of the losses, error rates and distances in mel that a run has validated."""
    names: set[str] = set()
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        names |= {
            name for name in json.loads(line) if name.startswith("val/") and name.endswith(("/loss", "/wer", "/mel_l1"))
        }
    return sorted(names)
