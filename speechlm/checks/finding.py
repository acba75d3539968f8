"""What a check found, and what to do about it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["good", "mind", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Args:
        check: what was looked at.
        status: good; mind, the job would run but worse than it could; broken, it would fail.
        found: with its numbers.
        advice: what to do; of a good finding there is none.
    """

    check: str
    status: Status
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert bool(self.advice) == (self.status != "good"), self


def guarded(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """A check's findings; one that itself fails is a finding, not the end of the others."""
    try:
        yield from look()
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        advice = "look at the error; the job is likely to meet it as well"
        yield Finding(check, "broken", f"the check failed: {type(error).__name__}: {text}", advice)


def size(num_bytes: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit in ("B", "KiB") else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
