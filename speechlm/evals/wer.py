"""Word error rate, with its uncertainty."""

from dataclasses import dataclass

import jiwer
import numpy as np

from speechlm.nn.whisper_text import normalise


@dataclass(frozen=True)
class ErrorRate:
    """Errors per reference word over a set of recordings.

    Attributes:
        rate: substitutions, deletions and insertions over reference words.
        low, high: 95 % interval from resampling recordings.
        errors, words: the two sums.
        clipped: whether a recording's errors were counted up to its words only, which bounds what one looping transcript costs.
    """

    rate: float
    low: float
    high: float
    errors: int
    words: int
    clipped: bool

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def word_error_rate(
    references: list[str],
    hypotheses: list[str],
    language: str = "en",
    clip: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> ErrorRate:
    """Compare transcripts after Whisper's normalisation; recordings whose reference is then empty do not count.

    Raises:
        ValueError: nothing is left to compare.
    """
    pairs = [(normalise(r, language), normalise(h, language)) for r, h in zip(references, hypotheses, strict=True)]
    counted = [(_errors(r, h), len(r.split())) for r, h in pairs if r]
    if not counted:
        raise ValueError("no reference has a word left after normalisation; there is no error rate to compute")
    errors, words = np.array(counted).T
    if clip:
        errors = np.minimum(errors, words)
    picks = np.random.default_rng(seed).integers(len(words), size=(resamples, len(words)))
    rates = errors[picks].sum(axis=1) / words[picks].sum(axis=1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return ErrorRate(
        float(errors.sum() / words.sum()), float(low), float(high), int(errors.sum()), int(words.sum()), clip
    )


def marked_words(reference: str, hypothesis: str, language: str = "en") -> list[tuple[str, bool]]:
    """The hypothesis word by word, normalised, each with whether it is wrong; a deleted word shows as "∅"."""
    ref, hyp = normalise(reference, language).split(), normalise(hypothesis, language).split()
    if not ref:
        return [(word, False) for word in hyp]
    marked: list[tuple[str, bool]] = []
    for chunk in jiwer.process_words(" ".join(ref), " ".join(hyp)).alignments[0]:
        words = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
        deleted = ["∅"] * (chunk.ref_end_idx - chunk.ref_start_idx) if chunk.type == "delete" else []
        marked += [(word, chunk.type != "equal") for word in [*words, *deleted]]
    return marked


def _errors(reference: str, hypothesis: str) -> int:
    measured = jiwer.process_words(reference, hypothesis)
    return measured.substitutions + measured.deletions + measured.insertions
