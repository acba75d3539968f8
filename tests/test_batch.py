"""What the batches say of themselves."""

import torch

from speechlm.batch import RowBatch


def rows(doc_ids: list[list[int]]) -> RowBatch:
    """Rows of the given documents, all ids 0."""
    docs = torch.tensor(doc_ids, dtype=torch.int32)
    return RowBatch(
        torch.zeros(docs.shape, dtype=torch.int64), docs >= 0, docs, torch.zeros(len(docs), dtype=torch.int64)
    )


def test_positions_begin_anew_in_every_document_and_in_the_padding():
    batch = rows([[0, 0, 0, 1, 2, 2, -1, -1], [0, 0, 0, 0, 0, 0, 0, 0]])
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch.position_ids.dtype == torch.int64


def test_padding_is_counted_by_the_documents():
    batch = rows([[0, 0, 1, -1], [-1, -1, -1, -1]])
    assert batch.num_tokens == 3 and batch.padding_share == 5 / 8 and len(batch) == 2
