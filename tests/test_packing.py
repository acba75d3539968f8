"""Packing is best-fit-decreasing, loses nothing, and cuts only what can not be whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.tokens.packing import cut, pack

LENGTHS = st.lists(st.integers(1, 64), max_size=200).map(lambda values: np.array(values, dtype=np.int64))


def best_fit_decreasing(lengths: np.ndarray, row_len: int) -> list[int]:
    """Fill of each row, one document at a time, as the textbook says."""
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(row_len - length)
    return sorted(row_len - room for room in rooms)


@given(LENGTHS)
@settings(max_examples=300, deadline=None)
def test_groups_give_the_rows_that_one_document_at_a_time_gives(lengths: np.ndarray):
    packing = pack(lengths, 64)
    assert sorted(packing.fill.tolist()) == best_fit_decreasing(lengths, 64)


@given(LENGTHS)
@settings(max_examples=200, deadline=None)
def test_every_document_has_a_place_of_its_own_and_rows_have_no_holes(lengths: np.ndarray):
    packing = pack(lengths, 64)
    taken = np.zeros((packing.num_rows, 64), dtype=int)
    for row, offset, length in zip(packing.row, packing.offset, lengths, strict=True):
        taken[row, offset : offset + length] += 1
    assert taken.max(initial=0) <= 1 and taken.sum() == lengths.sum()
    assert [int(row.sum()) for row in taken] == packing.fill.tolist()
    assert all((np.diff(row) <= 0).all() for row in taken)


@given(st.lists(st.integers(0, 300), max_size=50))
def test_only_documents_longer_than_a_row_are_cut_and_their_pieces_join_to_them(lengths: list[int]):
    pieces = cut(np.array(lengths), 64)
    for index, length in enumerate(lengths):
        mine = pieces.document == index
        assert mine.sum() == (1 if 0 < length <= 64 else -(-length // 64))
        assert [(s, n) for s, n in zip(pieces.start[mine].tolist(), pieces.length[mine].tolist(), strict=True)] == [
            (start, min(64, length - start)) for start in range(0, length, 64)
        ]


@pytest.mark.parametrize(
    ("length", "pieces"), [(0, []), (1, [1]), (8192, [8192]), (8193, [8192, 1]), (10**6, [8192] * 122 + [576])]
)
def test_lengths_at_the_edges(length: int, pieces: list[int]):
    cut_up = cut(np.array([length]), 8192)
    assert cut_up.length.tolist() == pieces
    assert pack(cut_up.length, 8192).fill.sum() == length


def test_a_realistic_mix_wastes_a_thousandth_of_the_positions_at_most():
    rng = np.random.default_rng(0)
    for mean, sigma, count in [(1485, 1.1, 30_000), (191, 0.6, 100_000)]:
        lengths = np.maximum(1, rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)).astype(np.int64)
        packing = pack(cut(lengths, 8192).length, 8192)
        assert packing.fill.sum() == lengths.sum()
        assert packing.fill.sum() / (packing.num_rows * 8192) > 0.999


def test_a_length_that_fits_no_row_is_refused():
    with pytest.raises(ValueError, match=r"lengths must be in \[1, 64\], got 3 to 65; `cut` them first"):
        pack(np.array([3, 65]), 64)


def test_the_same_lengths_give_the_same_rows():
    lengths = np.array([5, 3, 5, 60, 64, 1, 3])
    packing = pack(lengths, 64)
    assert packing.row.tolist() == [2, 1, 2, 1, 0, 1, 2] and packing.offset.tolist() == [0, 60, 5, 0, 0, 63, 10]
    assert pack(np.array([], dtype=np.int64), 64).num_rows == 0
