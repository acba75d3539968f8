"""How often values occur, counted as they come by, in memory that does not grow with them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Histogram:
    """Counts in bins.

    Attributes:
        edges: lower limits of the bins, ascending; a value is in the last bin that begins at or below it.
        counts: values in each bin; those below the first edge are in the first.
        values: how many there were.
        mean: of the values themselves; 0 where there are none.
        largest: of the values themselves.
        median: lower limit of the bin that half of the values reach.
    """

    edges: list[float]
    counts: list[int]
    values: int
    mean: float
    largest: float
    median: float


class Counting:
    """Counts values into bins.

    Args:
        edges: lower limits of the bins, ascending.
    """

    def __init__(self, edges: np.ndarray) -> None:
        self.edges = np.asarray(edges, np.float64)
        self.counts = np.zeros(len(edges), np.int64)
        self.total = self.largest = 0.0

    def add(self, values: np.ndarray | list[float]) -> None:
        """Count more of them."""
        values = np.asarray(values, np.float64)
        if not values.size:
            return
        bins = np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, None)
        self.counts += np.bincount(bins, minlength=len(self.edges))
        self.total += float(values.sum())
        self.largest = max(self.largest, float(values.max()))

    def histogram(self) -> Histogram:
        """What was counted until now, without the empty bins at the end."""
        values = int(self.counts.sum())
        used = int(np.flatnonzero(self.counts)[-1]) + 1 if values else 0
        median = float(self.edges[np.searchsorted(np.cumsum(self.counts), values / 2)]) if values else 0.0
        mean = self.total / values if values else 0.0
        edges, counts = self.edges[:used].tolist(), self.counts[:used].tolist()
        return Histogram(edges, counts, values, mean, self.largest, median)
