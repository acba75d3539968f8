"""Nothing is lost on the way through a verb: what came in is what came out and what was skipped, by reason, or the verb fails."""

from collections.abc import Mapping
from dataclasses import dataclass, field


class Unaccounted(RuntimeError):
    """Something came in and neither came out nor was skipped for a reason, or came out of nowhere."""


@dataclass(frozen=True)
class Account:
    """What became of all the items that came in.

    Args:
        what: the items, in the plural: recordings, documents, ids.
        came_in: counted where they are read.
        out: counted where they are written.
        skipped: the others, by reason.
        words: how "in", "out" and "skipped" are said.
    """

    what: str
    came_in: int
    out: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    words: tuple[str, str, str] = ("in", "out", "skipped")

    @property
    def remainder(self) -> int:
        """What nobody can explain; negative where more came out than went in."""
        return self.came_in - self.out - sum(self.skipped.values())

    def require(self, where: str) -> "Account":
        """The account itself, if it adds up.

        Args:
            where: the folder, shard or part it is of, for the message.

        Raises:
            Unaccounted: it does not.
        """
        if self.remainder:
            raise Unaccounted(
                f"{where} does not add up: {self}, which leaves {self.remainder} unexplained. That is a defect of this program: "
                f"do not train on it, make it again, and report the command"
            )
        return self

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()) if count)
        named = f" ({reasons})" if reasons else ""
        came_in, out, skipped = self.words
        return (
            f"{self.came_in} {self.what} {came_in} = {self.out} {out} + {sum(self.skipped.values())} {skipped}{named}"
        )
