"""The order of rows is a pure function of seed and position, and gives every source its share."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.tokens.keyed import key_of, permuted, uniform
from speechlm.tokens.order import BLOCK, REACH, Phase, RowOrder


def pairs(order: RowOrder, start: int, count: int) -> list[tuple[int, int]]:
    """(source, row) at each position."""
    sources, rows = order.at(start, count)
    return list(zip(sources.tolist(), rows.tolist(), strict=True))


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_a_keyed_permutation_is_a_permutation(size: int, key: int):
    keys = np.full(size, key, np.uint64)
    assert sorted(permuted(np.arange(size), size, keys).tolist()) == list(range(size))


def test_permutations_of_few_things_are_equally_likely():
    seen = Counter(tuple(permuted(np.arange(3), 3, np.full(3, key_of(s), np.uint64)).tolist()) for s in range(3000))
    assert len(seen) == 6 and max(seen.values()) < 1.2 * min(seen.values())


def test_numbers_of_a_key_are_uniform_and_can_be_had_in_parts():
    numbers = uniform(5, 100_000)
    assert abs(numbers.mean() - 0.5) < 0.005 and 0 <= numbers.min() and numbers.max() < 1
    assert np.array_equal(np.concatenate([uniform(5, 10), uniform(5, 7, 10)]), uniform(5, 17))
    assert key_of("a", "b") != key_of("ab") != key_of("a", 1) != key_of("a", "1")


def test_any_stretch_of_the_stream_can_be_had_by_itself():
    order = RowOrder([50, 1000, 7], [Phase((0.3, 0.6, 0.1), 9000), Phase((0.0, 0.5, 0.5))], seed=1)
    whole = pairs(order, 0, 12_000)
    for start, count in [(0, 1), (1, 4095), (4095, 2), (8990, 20), (9000, 1), (11_990, 10)]:
        again = RowOrder([50, 1000, 7], [Phase((0.3, 0.6, 0.1), 9000), Phase((0.0, 0.5, 0.5))], seed=1)
        assert pairs(again, start, count) == whole[start : start + count]


def test_every_row_of_a_source_comes_once_before_any_comes_again():
    order = RowOrder([50, 1000], [Phase((0.25, 0.75), 4001)], seed=3)
    stream = pairs(order, 0, 5000)
    assert len(stream) == 4001 == order.rows
    for source, size in enumerate([50, 1000]):
        rows = [row for s, row in stream if s == source]
        passes = [rows[i : i + size] for i in range(0, len(rows), size)]
        assert all(len(set(one)) == len(one) for one in passes)
        assert passes[0] != passes[1]


@given(st.lists(st.floats(1e-5, 1), min_size=1, max_size=6), st.integers(0, 2**40))
@settings(max_examples=100, deadline=None)
def test_counts_follow_the_weights_wherever_one_looks_and_grow_by_one(values: list[float], start: int):
    weights = tuple(value / sum(values) for value in values)
    start = min(start, 2**31 - 5000)
    counts = Phase(weights).counts(np.arange(start, start + 5000))
    assert np.array_equal(counts.sum(0), np.arange(start, start + 5000))
    assert set(np.unique(np.diff(counts, axis=1))) <= {0, 1}
    expected = np.array(weights)[:, None] * np.arange(start, start + 5000)
    assert np.abs(counts - expected).max() < len(weights) + start * len(weights) * 2**-31


def test_a_source_of_little_weight_still_comes():
    order = RowOrder([10, 10], [Phase((1e-4, 1 - 1e-4))], seed=0)
    sources, _ = order.at(0, 100_000)
    assert (sources == 0).sum() == pytest.approx(10, abs=1)


def test_every_batch_has_about_the_mixture_and_no_rhythm():
    sources, _ = RowOrder([1000, 1000], [Phase((0.5, 0.5))], seed=0).at(0, 2 * BLOCK)
    assert abs(sources[:512].mean() - 0.5) < REACH / 512
    assert 0.3 < (np.diff(sources) != 0).mean() < 0.7
    assert abs(sources[::2].mean() - 0.5) < 0.05


def test_after_a_phase_sources_go_on_where_they_were():
    order = RowOrder([500, 500], [Phase((0.5, 0.5), 600), Phase((1.0, 0.0), 200)], seed=0)
    stream = pairs(order, 0, 800)
    first = [row for source, row in stream if source == 0]
    assert len(first) == 500 == len(set(first))
    assert {source for source, _ in stream[600:]} == {0}
    assert order.seen(600).tolist() == [300, 300] and order.seen(800).tolist() == [500, 300]


def test_seeds_have_orders_of_their_own():
    one, two = (pairs(RowOrder([100, 100], [Phase((0.5, 0.5))], seed), 0, 200) for seed in (0, 1))
    assert one != two


def test_the_far_end_of_a_trillion_ids_is_as_near_as_the_beginning():
    order = RowOrder([40_000_000, 80_000_000], [Phase((0.3, 0.7), 122_070_312)], seed=0)
    started = time.perf_counter()
    sources, rows = order.at(order.rows - 100, 100)
    assert time.perf_counter() - started < 0.5
    assert len(sources) == 100 and rows.max() < 80_000_000


def test_the_order_never_changes_between_versions():
    order = RowOrder([5, 9], [Phase((0.4, 0.6))], seed=7)
    assert pairs(order, 4, 6) == [(0, 0), (0, 1), (1, 6), (1, 4), (1, 3), (1, 8)]


@pytest.mark.parametrize("weights", [(0.5, 0.6), (0.5, 0.4), (-0.5, 1.5), (float("nan"), 1.0)])
def test_weights_that_are_no_shares_are_refused(weights: tuple[float, ...]):
    with pytest.raises(ValueError, match="weights must be at least 0 and sum to 1"):
        Phase(weights)


def test_a_source_without_rows_can_have_no_weight():
    with pytest.raises(ValueError, match="can not have the weights"):
        RowOrder([0, 5], [Phase((0.5, 0.5))], 0)
    assert set(RowOrder([0, 5], [Phase((0.0, 1.0))], 0).at(0, 10)[0].tolist()) == {1}
