"""95 % intervals by resampling items: how much a number would move on another draw of the same kind of items."""

from collections.abc import Sequence

import numpy as np

from speechlm.evals.task import Better, Metric

RESAMPLES = 1000
CHUNK = 2**22  # numbers drawn at a time


def ratio(
    name: str,
    over: Sequence[float],
    under: Sequence[float] | None = None,
    unit: str = "",
    better: Better = "",
    scale: float = 1.0,
    seed: int = 0,
) -> Metric:
    """Sum over sum, of items that are drawn together; the mean where `under` is left out.

    Args:
        name: of the metric.
        over: one number per item.
        under: what the sum is divided by, per item.
        unit: see `Metric`.
        better: see `Metric`.
        scale: such as 100 for percent.
        seed: of the resampling.

    Raises:
        ValueError: there is no item, or the numbers are not finite, or the sum below is 0.
    """
    top = np.asarray(over, np.float64)
    bottom = np.ones_like(top) if under is None else np.asarray(under, np.float64)
    if not len(top):
        raise ValueError(f"{name}: there is not one item to count")
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise ValueError(f"{name}: a number is not finite, which no metric may count")
    if bottom.sum() <= 0:
        raise ValueError(f"{name}: there is nothing to divide by")
    draws = _draws(top, bottom, seed)
    low, high = np.quantile(scale * draws, [0.025, 0.975])
    return Metric(name, float(scale * top.sum() / bottom.sum()), float(low), float(high), len(top), unit, better)


def percent(name: str, right: Sequence[float], better: Better = "higher", seed: int = 0) -> Metric:
    """Share of items, in percent."""
    return ratio(name, right, None, "%", better, 100.0, seed)


def plain(name: str, value: float, count: int, unit: str = "", better: Better = "") -> Metric:
    """A number without an interval."""
    return Metric(name, float(value), None, None, count, unit, better)


def _draws(top: np.ndarray, bottom: np.ndarray, seed: int) -> np.ndarray:
    """(RESAMPLES,) ratios; draws without anything below are left out."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(top))
    found = []
    for begin in range(0, RESAMPLES, rows):
        picks = rng.integers(len(top), size=(min(rows, RESAMPLES - begin), len(top)))
        below = bottom[picks].sum(axis=1)
        found.append(top[picks].sum(axis=1)[below > 0] / below[below > 0])
    return np.concatenate(found)
