"""What became of a run's updates: guards write down which are left out, stages read it, so that nothing learns from those.

An update is left out by taking its gradients away: an optimizer then changes neither weights nor moments. What a stage keeps
beside them, averages and codebooks, it leaves alone where `left_out_at` says so.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class Updates:
    """The updates of one module, the same on every rank.

    Attributes:
        step: the last one left out, -1 before there is one.
        reason: why it was.
        in_a_row: so many in a row up to `step`.
        counts: left out in all, by kind of reason.
    """

    step: int = -1
    reason: str = ""
    in_a_row: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def leave_out(self, step: int, kind: str, reason: str) -> None:
        """The update of a step is not to be made."""
        if step == self.step:
            return
        self.in_a_row = self.in_a_row + 1 if step == self.step + 1 else 1
        self.step, self.reason = step, reason
        self.counts[kind] += 1

    def left_out_at(self, step: int) -> bool:
        """Whether the update of this step is left out."""
        return step == self.step >= 0

    def streak(self, steps: int) -> int:
        """How many were left out in a row, `steps` updates being over; 0 where the last one was made."""
        return self.in_a_row if self.left_out_at(steps - 1) else 0


def updates_of(module: nn.Module) -> Updates:
    """The ledger that goes with a module; made when it is first asked for."""
    kept: Any = module.__dict__.get("_updates")
    if kept is None:
        kept = module.__dict__["_updates"] = Updates()
    return kept
