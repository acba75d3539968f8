"""Batches of packed rows: of places in memory-mapped files, of a mixture in its order, shortened, and read ahead."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from datamodules.background import in_background
from speechlm.batch import RowBatch
from speechlm.tokens.order import RowOrder
from speechlm.tokens.rows import RowFile, RowFolder


@dataclass(frozen=True)
class Stream:
    """The rows of a mixture in the order they are trained.

    Attributes:
        folders: rows of each source.
        names: of the sources.
        languages: of the sources.
        order: which row comes when.
    """

    folders: list[RowFolder]
    names: list[str]
    languages: list[str]
    order: RowOrder

    @property
    def row_len(self) -> int:
        """Ids of a row."""
        return self.folders[0].row_len

    def batch(self, start: int, count: int) -> RowBatch:
        """Rows at positions `start` on; behind the end of the stream there are rows with neither documents nor loss.

        Raises:
            ValueError: a row is not what was written.
        """
        sources, rows = self.order.at(start, count)
        places = [self.folders[source].locate(row) for source, row in zip(sources.tolist(), rows.tolist(), strict=True)]
        batch = batch_of(places, count, self.row_len)
        batch.source_ids[: len(sources)] = torch.from_numpy(sources)
        batch.sources, batch.languages = self.names, self.languages
        return batch


def batch_of(places: list[tuple[RowFile, int]], count: int, row_len: int) -> RowBatch:
    """A batch of `count` rows, of which the last are empty where there are fewer places.

    Args:
        places: file and number of each row.
        count: rows of the batch.
        row_len: ids of a row.
    """
    for file, index in places:
        file.will_need(index)
    ids = np.empty((count, row_len), np.int64)
    ids[len(places) :] = 0
    ends, spans = [], []
    for i, (file, index) in enumerate(places):
        row = file.row(index)
        ids[i] = row.ids
        ends.append(row.document_ends)
        spans.append(row.loss_spans)
    return RowBatch(
        torch.from_numpy(ids),
        torch.from_numpy(_inside(spans, count, row_len)),
        torch.from_numpy(_numbered(ends, count, row_len)),
        torch.zeros(count, dtype=torch.int64),
    )


def _inside(spans: list[np.ndarray], count: int, row_len: int) -> np.ndarray:
    """(count, row_len) bool, True inside the spans of each row: stretches of False and True in turns."""
    shifted = [row.astype(np.int64) + i * row_len for i, row in enumerate(spans)]
    edges = np.concatenate([[0], *(row.reshape(-1) for row in shifted), [count * row_len]])
    values = np.arange(len(edges) - 1) % 2 == 1
    return np.repeat(values, np.diff(edges)).reshape(count, row_len)


def _numbered(ends: list[np.ndarray], count: int, row_len: int) -> np.ndarray:
    """(count, row_len) int32, the number of each position's document in its row, -1 behind the last of them."""
    none = np.zeros(0, np.int64)
    padded = [np.append(ends[i] if i < len(ends) else none, row_len) + i * row_len for i in range(count)]
    numbers = [np.append(np.arange(len(row) - 1, dtype=np.int32), np.int32(-1)) for row in padded]
    lengths = np.diff(np.concatenate(padded), prepend=0)
    return np.repeat(np.concatenate(numbers), lengths).reshape(count, row_len)


def shortened(batch: RowBatch, seq_len: int) -> RowBatch:
    """(B, S) rows as (B · S / seq_len, seq_len) sequences; a document that is cut by that begins anew."""
    parts = batch.ids.shape[1] // seq_len
    if parts == 1:
        return batch
    doc_ids = batch.doc_ids.reshape(-1, seq_len)
    loss_mask = batch.loss_mask.reshape(-1, seq_len)
    loss_mask[:, 0] = False
    return RowBatch(
        batch.ids.reshape(-1, seq_len),
        loss_mask,
        torch.where(doc_ids >= 0, doc_ids - doc_ids[:, :1], doc_ids),
        batch.source_ids.repeat_interleave(parts),
        batch.sources,
        batch.languages,
    )


class RowLoader:
    """Batches; the same and in the same order, whether a side thread reads them ahead or not.

    Args:
        batches: called whenever iteration begins, gives batches from where training stands then.
        prefetch: batches read ahead; 0 reads them in the caller's thread.
    """

    def __init__(self, batches: Callable[[], Iterator[RowBatch]], prefetch: int = 0) -> None:
        self.batches, self.prefetch = batches, prefetch

    def __iter__(self) -> Iterator[RowBatch]:
        return in_background(self.batches(), self.prefetch) if self.prefetch else self.batches()
