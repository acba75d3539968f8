"""The advice for a language follows from its numbers, in the order the rule states."""

import numpy as np
import pytest

from speechlm.evals.advice import AdviceRule, advise, perplexity_share


@pytest.mark.parametrize(
    ("through", "unquantised", "share", "verdict"),
    [
        (0.10, 0.08, 0.9, "keep"),
        (0.08, 0.10, 0.9, "keep"),
        (0.12, 0.08, 0.1, "keep"),  # what is understood need not be told apart any better
        (0.40, 0.08, 0.9, "fine-tune"),
        (0.40, 0.08, None, "fine-tune"),
        (0.40, 0.08, 0.3, "retrain"),
        (0.95, 0.90, 0.9, "retrain"),
        (0.52, 0.51, 1.0, "retrain"),
    ],
)
def test_the_rule(through: float, unquantised: float, share: float | None, verdict: str):
    advice = advise(through, unquantised, share)
    assert advice.verdict == verdict
    assert advice.gap == pytest.approx(through - unquantised)
    assert f"{unquantised:.1%}" in advice.reason


def test_without_a_model_to_compare_with_there_is_no_advice():
    advice = advise(0.3, None, 0.9)
    assert advice.verdict == "unknown" and "--source" in advice.reason


def test_limits_are_the_rule_s():
    strict = AdviceRule(keep_gap=0.01, max_unquantised=0.05)
    assert advise(0.10, 0.08, 1.0, strict).verdict == "retrain"
    assert advise(0.06, 0.04, 1.0, strict).verdict == "fine-tune"
    assert "5%" in str(strict) and "1 points" in str(strict)


def test_a_language_on_few_codes_has_a_small_share():
    rng = np.random.default_rng(0)
    many = [rng.integers(64, size=100) for _ in range(20)]
    few = [rng.integers(8, size=100) for _ in range(20)]
    assert perplexity_share(few, many, 64) == pytest.approx(1 / 8, rel=0.1)
    assert perplexity_share(many, many, 64) == 1.0


def test_a_share_compares_as_many_tokens_of_each():
    """Fifty tokens can not have the perplexity of two thousand, and are not blamed for it."""
    rng = np.random.default_rng(0)
    short, long = [rng.integers(512, size=50)], [rng.integers(512, size=100) for _ in range(20)]
    assert perplexity_share(short, long, 512) == pytest.approx(1.0, abs=0.1)
    assert perplexity_share(short, [], 512) is None
