"""How much of a corpus may be unusable before whoever reads it stops."""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class SkipLimit:
    """A share, looked at once so many are bad that the share means something.

    Args:
        max_rate: largest share of what was read that may be bad.
        min_count: so many must be bad before.
        advice: what to raise, for the message.
    """

    max_rate: float
    min_count: int
    advice: str

    def require(self, reasons: Counter[str], seen: int, what: str, last: str) -> None:
        """Refuse to go on where too much is bad.

        Args:
            reasons: of what was bad.
            seen: good and bad.
            what: in the plural, for the message.
            last: name and reason of the last that was bad.

        Raises:
            RuntimeError: it is.
        """
        bad = reasons.total()
        if bad >= self.min_count and bad > self.max_rate * seen:
            raise RuntimeError(
                f"{bad} of {seen} {what} could not be used ({dict(reasons)}), more than the {self.max_rate:.2%} allowed; the "
                f"last was {last}. Mend the corpus or raise {self.advice}"
            )
