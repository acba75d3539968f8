"""A window at a time: nothing lost, little wasted, the right ids predicted."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.tokens.filling import Filled, RowFiller
from speechlm.tokens.rows import RowFile, row_writer
from speechlm.tokens.templates import Written
from tests.row_corpus import PAD, VOCAB


def filled(path: Path, documents: list[Written], row_len: int = 16, window: int = 64) -> tuple[RowFile, Filled]:
    """A file of rows of documents."""
    with row_writer(path, row_len, VOCAB.hash, len(VOCAB), {}) as writer:
        filler = RowFiller(writer, VOCAB, window)
        for document in documents:
            filler.add(document)
        counts = filler.finish()
    return RowFile(path, verify=True), counts


def sequences(file: RowFile) -> list[tuple[list[int], list[bool]]]:
    """(ids, predicted) of every document in the rows."""
    found = []
    for index in range(len(file)):
        row = file.row(index)
        predicted = np.zeros(file.row_len, bool)
        for begin, end in row.loss_spans:
            assert not predicted[begin:end].any()
            predicted[begin:end] = True
        begin = 0
        for end in row.document_ends.tolist():
            found.append((row.ids[begin:end].tolist(), predicted[begin:end].tolist()))
            begin = end
        assert (row.ids[begin:] == PAD).all() and not predicted[begin:].any()
    return found


@given(lengths=st.lists(st.integers(1, 60), max_size=80), window=st.sampled_from([16, 64, 10_000]))
@settings(max_examples=60, deadline=None)
def test_every_id_comes_out_once_with_its_neighbours(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], window: int
):
    starts = np.cumsum([0, *lengths])
    documents = [Written(np.arange(s, s + n) % 1000, n // 3) for s, n in zip(starts, lengths, strict=False)]
    file, counts = filled(tmp_path_factory.mktemp("rows") / "a.rows", documents, window=window)
    expected = []
    for document in documents:
        predicted = np.arange(len(document.ids)) >= document.target
        for start in range(0, len(document.ids), 16):
            ids, mask = document.ids[start : start + 16].tolist(), predicted[start : start + 16].tolist()
            expected.append((ids, [False, *mask[1:]]))
    assert sorted(sequences(file)) == sorted(expected)
    assert counts.ids_in == counts.ids_out == sum(lengths) == counts.text_ids
    assert counts.loss_ids == sum(sum(mask) for _, mask in expected)
    assert counts.documents == len(lengths) and counts.documents_cut == sum(n > 16 for n in lengths)
    assert counts.padding == len(file) * 16 - sum(lengths)


def test_a_small_window_wastes_hardly_more_than_a_large_one(tmp_path: Path):
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(3.5, 0.7, 6000)).astype(int)
    documents = [Written(np.zeros(n, np.int64), 0) for n in lengths]
    shares = []
    for window in (20_000, 10**9):
        file, counts = filled(tmp_path / "a.rows", documents, 512, window)
        shares.append(counts.padding / (len(file) * 512))
    assert shares[0] < 0.004 and shares[1] < 0.002


def test_documents_that_fit_together_badly_do_not_wait_for_ever(tmp_path: Path):
    with row_writer(tmp_path / "a.rows", 16, VOCAB.hash, len(VOCAB), {}) as writer:
        filler = RowFiller(writer, VOCAB, 64)
        for number in range(1, 101):
            filler.add(Written(np.zeros(9, np.int64), 0))
            assert len(writer.sums) > number - 8
        assert filler.finish().padding == 700 and len(writer.sums) == 100


def test_text_speech_and_control_ids_are_counted(tmp_path: Path):
    ids = np.array([0, 999, VOCAB.control("<|user|>"), VOCAB.speech_offset, len(VOCAB) - 1])
    counts = filled(tmp_path / "a.rows", [Written(ids, 3)])[1]
    assert (counts.text_ids, counts.control_ids, counts.speech_ids, counts.loss_ids) == (2, 1, 2, 2)


def test_the_target_of_a_cut_document_is_predicted_in_every_piece(tmp_path: Path):
    file, _ = filled(tmp_path / "a.rows", [Written(np.arange(40), 20)])
    assert sorted(sequences(file)) == [
        (list(range(16)), [False] * 16),
        (list(range(16, 32)), [False] * 4 + [True] * 12),
        (list(range(32, 40)), [False] + [True] * 7),
    ]


def test_nothing_makes_a_file_without_rows(tmp_path: Path):
    file, counts = filled(tmp_path / "a.rows", [])
    assert len(file) == 0 and counts == Filled()
