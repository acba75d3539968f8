"""Error rates: exact on small cases, certain about their uncertainty."""

import numpy as np
import pytest

from speechlm.evals.codebook import codebook_stats
from speechlm.evals.wer import marked_words, word_error_rate


def test_a_known_case():
    result = word_error_rate(["the cat sat down", "on it"], ["the rat sat", "on it"])
    assert (result.errors, result.words) == (2, 6)
    assert result.rate == pytest.approx(1 / 3)
    assert result.low <= result.rate <= result.high


def test_case_punctuation_and_spelling_do_not_count():
    assert word_error_rate(["The colour, please."], ["the color please"]).errors == 0


def test_a_loop_costs_all_its_insertions_unless_clipped():
    loop = ["yes " * 50]
    assert word_error_rate(["yes yes"], loop).rate == pytest.approx(24.0)
    assert word_error_rate(["yes yes"], loop, clip=True).rate == pytest.approx(1.0)


def test_recordings_without_a_word_do_not_count_and_all_of_them_is_an_error():
    assert word_error_rate(["(noise)", "cat"], ["noise", "cat"]).words == 1
    with pytest.raises(ValueError, match="no reference has a word left"):
        word_error_rate(["(noise)"], ["x"])


def test_wrong_words_are_marked_where_they_stand():
    assert marked_words("the cat sat", "the rat sat") == [("the", False), ("rat", True), ("sat", False)]
    assert marked_words("the cat sat", "the sat") == [("the", False), ("∅", True), ("sat", False)]


def test_a_uniform_codebook_carries_all_its_bits():
    stats = codebook_stats([np.arange(16), np.arange(16)[::-1]], 16, 12.5)
    assert stats.usage == 1.0
    assert stats.perplexity == pytest.approx(16.0)
    assert stats.entropy_bits_per_sec == stats.bits_per_sec == pytest.approx(50.0)


def test_one_code_carries_nothing():
    stats = codebook_stats([np.zeros(10, dtype=int)], 16, 12.5)
    assert (stats.usage, stats.perplexity, stats.repeats) == (1 / 16, 1.0, 1.0)


@pytest.mark.parametrize("codes", [[], [np.array([16])], [np.array([-1])]])
def test_no_codes_and_codes_out_of_range_are_refused(codes: list):
    with pytest.raises(ValueError, match=r"not one speech token|outside \[0, 16\)"):
        codebook_stats(codes, 16, 12.5)
