"""A guard on gradients: which updates are better left out, and when a run had better stop."""

import logging
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuardSettings:
    """What is left out. Clipping is the trainer's (`gradient_clip_val`).

    Args:
        spike: leave out an update whose gradient's norm is so many times the usual one; null leaves out only those that are not
            finite.
        warmup: updates before the usual norm is known well enough to compare with.
        memory: share of the usual norm that stays at each update.
        max_skipped: updates in a row that are left out, after which the run stops.
    """

    spike: float | None = None
    warmup: int = 100
    memory: float = 0.98
    max_skipped: int = 20

    def __post_init__(self) -> None:
        if (
            (self.spike is not None and self.spike <= 1)
            or self.warmup < 1
            or not 0 < self.memory < 1
            or self.max_skipped < 1
        ):
            raise ValueError(
                f"a guard needs spike above 1 (or null), warmup and max_skipped of at least 1, memory between 0 and 1, got {self}"
            )


class GradientGuard:
    """Looks at the norm of every update's gradient; the same on every rank, where gradients were averaged.

    Args:
        settings: what is left out.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.usual_log = 0.0  # mean logarithm of the norms so far, recent ones weigh more
        self.seen = 0
        self.skipped = 0
        self.in_a_row = 0

    def passes(self, norm: Tensor, step: int) -> bool:
        """Whether an update with this norm is to be made.

        Raises:
            RuntimeError: too many in a row were not.
        """
        size = float(norm)
        reason = self._reason(size)
        if reason:
            self.skipped += 1
            self.in_a_row += 1
            log.warning("the update of step %d was left out: %s", step, reason)
            if self.in_a_row >= self.settings.max_skipped:
                raise RuntimeError(
                    f"{self.in_a_row} updates in a row were left out, the last because {reason}; lower the learning rate, "
                    f"look at the data, or change `model.init_args.guard`"
                )
            return False
        self._learn(size)
        return True

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"usual_log": self.usual_log, "seen": self.seen, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        for name, value in state.items():
            setattr(self, name, value)

    def _reason(self, size: float) -> str:
        if not math.isfinite(size):
            return f"its gradient's norm is {size}"
        spike, usual = self.settings.spike, math.exp(self.usual_log)
        if spike is not None and self.seen >= self.settings.warmup and size > spike * usual:
            return f"its gradient's norm is {size:.3g}, more than {spike:g} times the usual {usual:.3g}"
        return ""

    def _learn(self, size: float) -> None:
        keep = min(self.settings.memory, self.seen / (self.seen + 1))  # the plain mean at first
        self.usual_log = keep * self.usual_log + (1.0 - keep) * math.log(max(size, 1e-12))
        self.seen += 1
        self.in_a_row = 0
