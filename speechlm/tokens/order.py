"""The order in which rows of several sources are trained: a pure function of seed and position, of any length, stored nowhere.

Any world size reads the same stream, and to resume is to compute where one is. Positions are handled in blocks, so that numpy
does the work: a block of 4096 positions of a stream of 122 million rows (10^12 ids) takes 6 ms, wherever in the stream it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from speechlm.tokens.keyed import key_of, mix, permuted, uniform

BLOCK = 4096
REACH = 64  # positions a row may be moved by, so that sources do not follow each other in a rhythm
UNIT = 1 << 31


@dataclass(frozen=True)
class Phase:
    """A stretch of the stream with one mixture.

    Args:
        weights: share of the rows of each source, summing to 1.
        rows: length of the stretch; None never ends.
    """

    weights: tuple[float, ...]
    rows: int | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(w) and w >= 0 for w in self.weights) or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights must be at least 0 and sum to 1, got {list(self.weights)}")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"a phase needs at least one row, got {self.rows}")

    def counts(self, positions: np.ndarray) -> np.ndarray:
        """(S, N) int64 rows of each source in the first `positions` (N,) rows: within a few of weight × positions.

        Each source takes its share of what those before it leave, rounded. So every count grows by 0 or 1 from one position
        to the next, and all together by 1, however small a weight is.
        """
        left = np.asarray(positions, np.int64)
        rest = np.cumsum(np.array(self.weights[::-1]))[::-1]
        last = max(index for index, weight in enumerate(self.weights) if weight)
        counts = np.zeros((len(self.weights), len(left)), np.int64)
        for index, weight in enumerate(self.weights[:last]):
            counts[index] = (left * round(weight / rest[index] * UNIT) + UNIT // 2) // UNIT
            left = left - counts[index]
        counts[last] = left
        return counts


class RowOrder:
    """Which row of which source is at each position of the stream.

    Every source is gone through in an order of its own, each of its rows once before any comes again, and in another order each
    time; sources take turns by weight.

    Args:
        sizes: rows of each source.
        phases: mixtures, one after the other; only the last may be without end.
        seed: of everything.

    Raises:
        ValueError: a source with a weight has no rows, or the phases do not fit.
    """

    def __init__(self, sizes: Sequence[int], phases: Sequence[Phase], seed: int) -> None:
        self.sizes, self.phases, self.seed = list(sizes), list(phases), seed
        if not phases or any(phase.rows is None for phase in phases[:-1]):
            raise ValueError("there must be phases, and only the last may be without end")
        self.starts, self.before = [0], [np.zeros(len(sizes), np.int64)]
        for phase in phases:
            if len(phase.weights) != len(sizes) or any(w and not n for w, n in zip(phase.weights, sizes, strict=True)):
                raise ValueError(f"{len(sizes)} sources of {list(sizes)} rows can not have the weights {phase.weights}")
            if phase.rows is not None:
                self.starts.append(self.starts[-1] + phase.rows)
                self.before.append(self.before[-1] + phase.counts(np.array([phase.rows]))[:, 0])
        self._block = lru_cache(maxsize=4)(self._make_block)

    @property
    def rows(self) -> int | None:
        """Length of the stream; None never ends."""
        return self.starts[-1] if len(self.starts) > len(self.phases) else None

    def at(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(N,) source and (N,) row in it, of positions [start, start + count), fewer where the stream ends."""
        sources, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        end = start + count if self.rows is None else min(start + count, self.rows)
        while start < end:
            phase = max(index for index in range(len(self.phases)) if self.starts[index] <= start)
            block, within = divmod(start - self.starts[phase], BLOCK)
            made = self._block(phase, block)
            stop = min(within + end - start, len(made[0]))
            sources.append(made[0][within:stop])
            rows.append(made[1][within:stop])
            start += stop - within
        return np.concatenate(sources), np.concatenate(rows)

    def seen(self, position: int) -> np.ndarray:
        """(S,) int64 rows of each source before a position; exact where a phase ends, else within `REACH`."""
        phase = max(index for index in range(len(self.phases)) if self.starts[index] <= position)
        return self.before[phase] + self.phases[phase].counts(np.array([position - self.starts[phase]]))[:, 0]

    def _make_block(self, number: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and rows of a block of positions of a phase."""
        phase = self.phases[number]
        size = BLOCK if phase.rows is None else min(BLOCK, phase.rows - block * BLOCK)
        counts = phase.counts(block * BLOCK + np.arange(size + 1))
        taken = np.diff(counts, axis=1)
        jitter = REACH * uniform(key_of("order", self.seed, number, block), size)
        moved = np.argsort(np.arange(size) + jitter, kind="stable")
        sources = taken.argmax(0)[moved]
        turn = (counts[:, 0] + self.before[number])[sources] + _rank(sources, len(self.sizes))
        rows = np.empty(size, np.int64)
        for source in np.unique(sources):
            mine = sources == source
            passes, index = np.divmod(turn[mine], self.sizes[source])
            keys = mix(passes.astype(np.uint64) + np.uint64(key_of("rows", self.seed, int(source))))
            rows[mine] = permuted(index, self.sizes[source], keys)
        return sources, rows


def _rank(labels: np.ndarray, kinds: int) -> np.ndarray:
    """(N,) how many of the same label come before each."""
    rank = np.empty(len(labels), np.int64)
    for kind in range(kinds):
        mine = labels == kind
        rank[mine] = np.arange(mine.sum())
    return rank
