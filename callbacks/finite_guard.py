"""Updates whose loss or gradient is not finite are left out, by all ranks together."""

from callbacks.update_guard import StepSize, UpdateGuard


class FiniteGuard(UpdateGuard):
    """Leaves out every update with a NaN or an infinity in the loss or the gradient of any rank.

    Weights, the optimizer's moments, averages and codebooks stay what they were, and the next healthy update is made. Where they
    do not end, `callbacks.rewind.Rewind` goes back to an older state.
    """

    kind = "not_finite"

    def objection(self, size: StepSize) -> str:
        """What is not finite."""
        if size.finite:
            return ""
        return f"a loss or a gradient is not finite on one rank at least (gradient's norm {size.grad_norm:.3g})"
