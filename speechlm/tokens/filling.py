"""Sequences in, full rows out, in bounded memory: what fits badly waits for what comes later."""

from dataclasses import dataclass, field

import numpy as np

from speechlm.tokens.packing import cut, pack
from speechlm.tokens.rows import RowWriter
from speechlm.tokens.templates import Written
from speechlm.tokens.vocab import Vocab

WASTE = 1e-3  # share of a row that may be padding while more sequences are to come


@dataclass
class Filled:
    """What went into rows: `ids_in` = `ids_out`, and `documents` are all of those that were added."""

    documents: int = 0
    documents_cut: int = 0
    ids_in: int = 0
    ids_out: int = 0
    text_ids: int = 0
    speech_ids: int = 0
    control_ids: int = 0
    loss_ids: int = 0
    padding: int = 0


@dataclass
class RowFiller:
    """Packs sequences into rows a window at a time; the same for the same sequences.

    A window is packed best-fit-decreasing. Rows that came out nearly full are written; the sequences of the others are packed
    again with the next window, so that a small window wastes no more than a large one.

    Attributes:
        writer: of the rows.
        vocab: of the ids.
        window: ids that are held.
        filled: counts so far.
    """

    writer: RowWriter
    vocab: Vocab
    window: int
    filled: Filled = field(default_factory=Filled)
    _ids: list[np.ndarray] = field(default_factory=list)
    _predicted: list[np.ndarray] = field(default_factory=list)  # (n, 2) spans of each
    _held: int = 0

    def add(self, written: Written) -> None:
        """Take a sequence; one longer than a row is cut into full rows and what remains."""
        row_len, length = self.writer.row_len, len(written.ids)
        ids = written.ids.astype(self.writer.dtype)
        predicted = np.array([(written.target, length)] if written.spans is None else written.spans, np.int64)
        for start in cut(np.array([length]), row_len).start.tolist() if length > row_len else [0]:
            self._ids.append(ids[start : start + row_len])
            self._predicted.append(_inside(predicted.reshape(-1, 2) - start, min(row_len, length - start)))
        self.filled.documents += 1
        self.filled.documents_cut += length > row_len
        self.filled.ids_in += length
        self._held += length
        if self._held >= self.window:
            self._write_rows(all_rows=False)

    def finish(self) -> Filled:
        """Write what is left; the counts of everything."""
        self._write_rows(all_rows=True)
        assert self.filled.ids_in == self.filled.ids_out, self.filled
        return self.filled

    def _write_rows(self, all_rows: bool) -> None:
        row_len = self.writer.row_len
        lengths = np.array([len(ids) for ids in self._ids], dtype=np.int64)
        packing = pack(lengths, row_len)
        full = packing.fill >= (1 - WASTE) * row_len
        if all_rows or packing.fill[full].sum() < self.window // 2:  # else the same sequences might wait for ever
            full[:] = True
        order = np.lexsort((packing.offset, packing.row))
        bounds = np.searchsorted(packing.row[order], np.arange(packing.num_rows + 1))
        for row in np.nonzero(full)[0]:
            self._write_row(order[bounds[row] : bounds[row + 1]].tolist())
        waiting = np.nonzero(~full[packing.row])[0].tolist()
        self._ids = [self._ids[i] for i in waiting]
        self._predicted = [self._predicted[i] for i in waiting]
        self._held = sum(map(len, self._ids))

    def _write_row(self, members: list[int]) -> None:
        lengths = np.array([len(self._ids[i]) for i in members])
        ends = np.cumsum(lengths)
        begins = (ends - lengths).tolist()
        spans = np.concatenate([self._predicted[i] + begin for i, begin in zip(members, begins, strict=True)])
        padding = np.full(self.writer.row_len - ends[-1], self.vocab.control("<|pad|>"), self.writer.dtype)
        ids = np.concatenate([*(self._ids[i] for i in members), padding])
        self.writer.write(ids, ends, spans)
        self._count(ids[: ends[-1]], len(padding), int((spans[:, 1] - spans[:, 0]).sum()))

    def _count(self, ids: np.ndarray, padding: int, loss: int) -> None:
        speech = int((ids >= self.vocab.speech_offset).sum())
        text = int((ids < self.vocab.num_text).sum())
        self.filled.ids_out += len(ids)
        self.filled.speech_ids += speech
        self.filled.text_ids += text
        self.filled.control_ids += len(ids) - speech - text
        self.filled.loss_ids += loss
        self.filled.padding += padding


def _inside(spans: np.ndarray, length: int) -> np.ndarray:
    """(n, 2) spans as far as they lie in a document; what it begins with has nothing before it to be predicted from."""
    spans = np.clip(spans, 1, max(1, length))
    return spans[spans[:, 0] < spans[:, 1]]
