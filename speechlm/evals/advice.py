"""Whether a tokenizer can be kept for a language, should be trained further, or be trained anew: a rule, and its reasons."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from speechlm.evals.codebook import codebook_stats

Verdict = Literal["keep", "fine-tune", "retrain", "unknown"]


@dataclass(frozen=True)
class AdviceRule:
    """The limits, in the order they are looked at. Rates are counted with at most as many errors as words per recording.

    Attributes:
        max_unquantised: an error rate of the unquantised model above this says that it does not know the language: retrain, from
            one that does, or after teaching it the language without a quantiser.
        keep_gap: keep, if the bottleneck adds no more than this to the error rate.
        min_perplexity_share: retrain, if the perplexity of the codes is below this share of what it is, over as many tokens, in
            the languages that the tokenizer was trained on: the language then falls on few codes, which can not tell its sounds
            apart, and layers above them can not learn to. Otherwise fine-tune.
    """

    max_unquantised: float = 0.5
    keep_gap: float = 0.05
    min_perplexity_share: float = 0.5

    def __str__(self) -> str:
        return (
            f"retrain if the unquantised model has more than {self.max_unquantised:.0%} errors; else keep if the bottleneck adds "
            f"at most {100 * self.keep_gap:g} points; else retrain if the codes' perplexity is below "
            f"{self.min_perplexity_share:.0%} of that in the trained languages; else fine-tune"
        )


@dataclass(frozen=True)
class Advice:
    """What to do for a language, and why.

    Attributes:
        verdict: "keep", "fine-tune", "retrain", or "unknown" where there is no unquantised model to compare with.
        reason: one sentence with the numbers.
        unquantised: error rate of the unquantised model, None where there is none.
        gap: what the bottleneck adds to it.
        perplexity_share: perplexity of the codes, of that in the trained languages over as many tokens; None where there is
            nothing of these to compare with.
    """

    verdict: Verdict
    reason: str
    unquantised: float | None
    gap: float | None
    perplexity_share: float | None


def advise(
    through: float, unquantised: float | None, perplexity_share: float | None, rule: AdviceRule | None = None
) -> Advice:
    """The rule applied to a language.

    Args:
        through: error rate through the bottleneck.
        unquantised: error rate of the unquantised model.
        perplexity_share: see `Advice`; None counts as enough.
        rule: limits.
    """
    rule = rule or AdviceRule()
    if unquantised is None:
        reason = "there is no unquantised model to compare with; name the one the tokenizer started from with --source"
        return Advice("unknown", reason, None, None, perplexity_share)
    gap = through - unquantised
    adds = f"the bottleneck adds {100 * gap:.1f} points to {unquantised:.1%} errors"
    share = "no trained language to compare codes with" if perplexity_share is None else f"{perplexity_share:.0%}"
    codes = share if perplexity_share is None else f"the codes' perplexity is {share} of that in the trained languages"
    verdict: Verdict
    if unquantised > rule.max_unquantised:
        verdict, reason = "retrain", f"{unquantised:.1%} errors without any quantiser: start from a model that knows it"
    elif gap <= rule.keep_gap:
        verdict, reason = "keep", adds
    elif perplexity_share is not None and perplexity_share < rule.min_perplexity_share:
        verdict, reason = "retrain", f"{adds}, and {codes}: they can not tell its sounds apart"
    else:
        verdict, reason = "fine-tune", f"{adds}; {codes}"
    return Advice(verdict, reason, unquantised, gap, perplexity_share)


def perplexity_share(codes: list[np.ndarray], trained: list[np.ndarray], num_codes: int, seed: int = 0) -> float | None:
    """Perplexity of a language's codes over that of the trained languages', from as many tokens of each.

    Perplexity grows with the number of tokens, so the larger side is cut down, recording by recording in random order.

    Args:
        codes: (T,) of each recording of the language.
        trained: of the trained languages; None is returned where they are empty.
        num_codes: V.
        seed: of that order.
    """
    wanted = min(sum(map(len, codes)), sum(map(len, trained)))
    if not wanted:
        return None
    return _perplexity(codes, wanted, num_codes, seed) / _perplexity(trained, wanted, num_codes, seed)


def _perplexity(sequences: list[np.ndarray], wanted: int, num_codes: int, seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(sequences))
    tokens = np.concatenate([sequences[i] for i in order])[:wanted]
    return codebook_stats([tokens], num_codes, 1.0).perplexity
