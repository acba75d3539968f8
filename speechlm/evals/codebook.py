"""The health of a codebook, read off the codes it gives."""

from dataclasses import dataclass
from math import log2

import numpy as np


@dataclass(frozen=True)
class CodebookStats:
    """How a codebook is used.

    Attributes:
        num_codes: V.
        num_tokens: tokens counted.
        usage: share of the V codes that occur at all; can not exceed num_tokens / V.
        perplexity: 2 to the entropy: as many equally frequent codes would be as hard to guess.
        bits_per_sec: what the tokens could carry, rate x log2 V.
        entropy_bits_per_sec: what they do carry when each is coded alone, rate x entropy.
        repeats: share of tokens equal to the one before.
    """

    num_codes: int
    num_tokens: int
    usage: float
    perplexity: float
    bits_per_sec: float
    entropy_bits_per_sec: float
    repeats: float


def codebook_stats(sequences: list[np.ndarray], num_codes: int, token_rate_hz: float) -> CodebookStats:
    """From one (T,) array of codes per recording.

    Raises:
        ValueError: there is not one token, or a code is out of range.
    """
    counts = code_counts(sequences, num_codes)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    same = sum(int((s[1:] == s[:-1]).sum()) for s in sequences)
    pairs = sum(max(0, len(s) - 1) for s in sequences)
    return CodebookStats(
        num_codes=num_codes,
        num_tokens=int(counts.sum()),
        usage=float((counts > 0).mean()),
        perplexity=2.0**entropy,
        bits_per_sec=token_rate_hz * log2(num_codes),
        entropy_bits_per_sec=token_rate_hz * entropy,
        repeats=same / max(1, pairs),
    )


def code_counts(sequences: list[np.ndarray], num_codes: int) -> np.ndarray:
    """(V,) how often each code occurs."""
    codes = np.concatenate(sequences) if sequences else np.zeros(0, dtype=np.int64)
    if not len(codes):
        raise ValueError("there is not one speech token to count")
    if codes.min() < 0 or codes.max() >= num_codes:
        raise ValueError(f"codes run from {codes.min()} to {codes.max()}, outside [0, {num_codes})")
    return np.bincount(codes, minlength=num_codes)
