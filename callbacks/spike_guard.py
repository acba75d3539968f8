"""Updates far outside of what is usual are left out, by all ranks together."""

import math
from collections import deque
from typing import Any

from callbacks.update_guard import StepSize, UpdateGuard

FLOOR = 0.01  # of the mean: a loss that hardly moves has no spikes


class SpikeGuard(UpdateGuard):
    """Leaves out updates whose loss or gradient's norm is many standard deviations above the recent ones.

    The rule of OLMo's SkipStepOptimizer, with one difference: what is left out, or not finite, is not counted among the recent
    ones. There, one NaN makes the next `window` healthy updates look like spikes.

    Args:
        sigmas: so many standard deviations above the mean is a spike.
        window: updates that count as recent.
        warmup: so many there must be before anything is a spike.

    Raises:
        ValueError: a rule that leaves out everything or can never be used.
    """

    kind = "spikes"

    def __init__(self, sigmas: float = 6.0, window: int = 128, warmup: int = 64) -> None:
        super().__init__()
        if sigmas <= 0 or not 2 <= warmup <= window:
            raise ValueError(f"sigmas > 0 and 2 <= warmup <= window must hold, got {sigmas}, {warmup} and {window}")
        self.sigmas, self.warmup = sigmas, warmup
        self.losses: deque[float] = deque(maxlen=window)
        self.norms: deque[float] = deque(maxlen=window)

    def objection(self, size: StepSize) -> str:
        """Which of the two is a spike."""
        if not size.finite:
            return ""  # not this guard's matter
        for name, value, recent in (("loss", size.loss, self.losses), ("gradient's norm", size.grad_norm, self.norms)):
            mean, limit = self._limit(recent)
            if value > limit:
                return f"its {name} is {value:.4g}, more than {self.sigmas:g} standard deviations above {mean:.4g}"
        return ""

    def accepted(self, size: StepSize) -> None:
        """Take note of what is usual."""
        if size.finite:
            self.losses.append(size.loss)
            self.norms.append(size.grad_norm)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "losses": list(self.losses), "norms": list(self.norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.losses.extend(state_dict["losses"])
        self.norms.extend(state_dict["norms"])

    def _limit(self, recent: deque[float]) -> tuple[float, float]:
        """Mean, and what is too much."""
        if len(recent) < self.warmup:
            return 0.0, math.inf
        mean = sum(recent) / len(recent)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in recent) / len(recent))
        return mean, mean + self.sigmas * max(deviation, FLOOR * abs(mean))
