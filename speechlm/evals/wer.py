"""Word and character error rates, with their uncertainty."""

from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np

from speechlm.nn.scored_text import is_by_character, units_of


@dataclass(frozen=True)
class ErrorRate:
    """Errors per reference word, or character, over a set of recordings.

    Attributes:
        rate: substitutions, deletions and insertions over reference words.
        low, high: 95 % interval from resampling recordings.
        errors, words: the two sums; characters where `metric` is "cer".
        clipped: whether a recording's errors were counted up to its words only, which bounds what one looping transcript costs.
        metric: "wer" or "cer".
    """

    rate: float
    low: float
    high: float
    errors: int
    words: int
    clipped: bool
    metric: str = "wer"

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
    """Compare transcripts of a language after normalisation; recordings whose reference is then empty do not count.

    In a language written without blanks between words this is the character error rate; see `speechlm.nn.scored_text`.

    Raises:
        ValueError: nothing is left to compare.
    """
    pairs = [(units_of(r, language), units_of(h, language)) for r, h in zip(references, hypotheses, strict=True)]
    counted = [(_errors(r, h), len(r)) for r, h in pairs if r]
    if not counted:
        raise ValueError("no reference has a word left after normalisation; there is no error rate to compute")
    errors, words = np.array(counted).T
    if clip:
        errors = np.minimum(errors, words)
    picks = np.random.default_rng(seed).integers(len(words), size=(resamples, len(words)))
    rates = errors[picks].sum(axis=1) / words[picks].sum(axis=1)
    low, high = np.quantile(rates, [0.025, 0.975])
    rate = float(errors.sum() / words.sum())
    metric = "cer" if is_by_character(language) else "wer"
    return ErrorRate(rate, float(low), float(high), int(errors.sum()), int(words.sum()), clip, metric)


def error_rates(
    references: list[str], hypotheses: list[str], languages: list[str], **options: Any
) -> dict[str, ErrorRate]:
    """`word_error_rate` of every language among the recordings, by its code; a language of which nothing is left is absent.

    Args:
        references: transcripts.
        hypotheses: what is compared with them.
        languages: code of each; "" counts as English.
        options: of `word_error_rate`.
    """
    rates = {}
    for language in sorted({code or "en" for code in languages}):
        mine = [i for i, code in enumerate(languages) if (code or "en") == language]
        chosen = [references[i] for i in mine], [hypotheses[i] for i in mine]
        if any(units_of(reference, language) for reference in chosen[0]):
            rates[language] = word_error_rate(*chosen, language=language, **options)
    return rates


def marked_words(reference: str, hypothesis: str, language: str = "en") -> list[tuple[str, bool]]:
    """The hypothesis word by word, or by character, normalised, each with whether it is wrong; a deleted one shows as "∅"."""
    ref, hyp = units_of(reference, language), units_of(hypothesis, language)
    if not ref:
        return [(word, False) for word in hyp]
    marked: list[tuple[str, bool]] = []
    for chunk in jiwer.process_words(" ".join(ref), " ".join(hyp)).alignments[0]:
        words = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
        deleted = ["∅"] * (chunk.ref_end_idx - chunk.ref_start_idx) if chunk.type == "delete" else []
        marked += [(word, chunk.type != "equal") for word in [*words, *deleted]]
    return marked


def word_errors(reference: str, hypothesis: str, language: str = "en") -> tuple[int, int]:
    """Errors and reference words, or characters, of one recording after normalisation; (0, 0) where no reference is left."""
    ref = units_of(reference, language)
    return (_errors(ref, units_of(hypothesis, language)), len(ref)) if ref else (0, 0)


def _errors(reference: list[str], hypothesis: list[str]) -> int:
    measured = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return measured.substitutions + measured.deletions + measured.insertions
