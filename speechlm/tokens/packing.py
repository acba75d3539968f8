"""Documents into rows of a fixed length: best-fit-decreasing, no document cut that fits a row.

Longest first, each document goes into the row with the least room that still takes it ("Fewer Truncations Improve Language
Modeling", arXiv 2404.10830). Rows with the same room are alike and so are documents of the same length, so both are handled by
the group: 2 million documents take some ten thousand steps instead of 2 million, and the bookkeeping is plain Python. The rooms
that exist are the bits of one big integer, in which the least room that suffices is two operations away.
"""

from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """Documents cut where they are longer than a row, in order; the pieces of a document join to the document."""

    document: np.ndarray  # (P,) int64 index of the document a piece is of
    start: np.ndarray  # (P,) int64 where in that document it begins
    length: np.ndarray  # (P,) int64 ids, between 1 and the row's length


class Packing(NamedTuple):
    """Where each piece lies. Rows are numbered in the order they were opened, which is longest piece first."""

    row: np.ndarray  # (P,) int64
    offset: np.ndarray  # (P,) int64 position in the row
    fill: np.ndarray  # (R,) int64 ids in each row

    @property
    def num_rows(self) -> int:
        """Rows that were needed."""
        return len(self.fill)


def cut(lengths: np.ndarray, row_len: int) -> Pieces:
    """Full rows of every document that is longer than one, and what remains of it; other documents as they are.

    Args:
        lengths: (D,) ids of each document; a document of no ids has no piece.
        row_len: ids of a row.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    count = -(-lengths // row_len)
    document = np.repeat(np.arange(len(lengths)), count)
    first = np.cumsum(count) - count
    start = (np.arange(len(document)) - first[document]) * row_len
    return Pieces(document, start, np.minimum(lengths[document] - start, row_len))


def pack(lengths: np.ndarray, row_len: int) -> Packing:
    """Best-fit-decreasing; the same for the same lengths, everywhere.

    Args:
        lengths: (P,) ids of each piece, between 1 and `row_len`.
        row_len: ids of a row.

    Raises:
        ValueError: a length is out of range.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= row_len:
        raise ValueError(f"lengths must be in [1, {row_len}], got {lengths.min()} to {lengths.max()}; `cut` them first")
    order = np.argsort((row_len - lengths).astype(np.uint32 if row_len > 65_535 else np.uint16), kind="stable")
    counts = np.bincount(lengths, minlength=row_len + 1)
    rows = _Rows(row_len)
    for length in np.nonzero(counts)[0][::-1].tolist():
        rows.place(length, int(counts[length]))
    row, offset = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    placed = rows.placed() if rows.opened else (order, order)
    row[order], offset[order] = placed
    return Packing(row, offset, np.bincount(row, weights=lengths, minlength=rows.opened).astype(np.int64))


class _Rows:
    """Rows in the making, in stacks by room.

    Stretches of consecutive row numbers stand for the rows of a stack, so that a step costs the same for one row and a million.
    """

    def __init__(self, row_len: int) -> None:
        self.row_len = row_len
        self.opened = 0
        self.stacks: list[list[tuple[int, int]]] = [[] for _ in range(row_len + 1)]  # of (first row, rows) by room
        self.rooms = 0  # bit r is set where a row with room r exists
        self.steps: list[tuple[int, int, int, int, int]] = []  # (first row, rows, documents in each, offset, length)

    def place(self, length: int, count: int) -> None:
        """Place `count` documents of one length, no shorter than any to come."""
        while count:
            room = self._least_room(length)
            if room < 0:
                self._open(length, count)
                return
            first, size = self.stacks[room].pop()
            each = min(room // length, count)
            used = min(size, count // each)
            self._put_back(room, first + used, size - used)
            self._fill(first, used, each, room, length)
            count -= used * each

    def _open(self, length: int, count: int) -> None:
        """New rows, filled one after the other, as best-fit fills them."""
        each = min(self.row_len // length, count)
        full, rest = divmod(count, each)
        self._fill(self.opened, full, each, self.row_len, length)
        self.opened += full
        if rest:
            self._fill(self.opened, 1, rest, self.row_len, length)
            self.opened += 1

    def _least_room(self, length: int) -> int:
        """The least room of any row that takes `length`, -1 where none does."""
        fitting = self.rooms >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else -1

    def _fill(self, first: int, rows: int, each: int, room: int, length: int) -> None:
        self.steps.append((first, rows, each, self.row_len - room, length))
        left = room - each * length
        self.stacks[left].append((first, rows))
        self.rooms |= (left > 0) << left

    def _put_back(self, room: int, first: int, rows: int) -> None:
        if rows:
            self.stacks[room].append((first, rows))
        elif not self.stacks[room]:
            self.rooms &= ~(1 << room)

    def placed(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) row and (P,) offset of all documents, in the order they were placed."""
        first, rows, each, offset, length = np.array(self.steps, dtype=np.int64).T
        sizes = rows * each
        step = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(len(step)) - (np.cumsum(sizes) - sizes)[step]
        number = within // each[step]
        return first[step] + number, offset[step] + (within - number * each[step]) * length[step]
