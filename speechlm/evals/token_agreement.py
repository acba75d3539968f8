"""How far two token sequences are apart."""

import numpy as np


def edit_distance(a: np.ndarray, b: np.ndarray) -> int:
    """Fewest substitutions, deletions and insertions that make (n,) of (m,) tokens; O(n m) steps, m at a time."""
    row = np.arange(len(b) + 1)
    for i, token in enumerate(a, 1):
        without_insertions = np.empty_like(row)
        without_insertions[0] = i
        without_insertions[1:] = np.minimum(row[:-1] + (b != token), row[1:] + 1)
        # An insertion costs 1 a step to the right: the running minimum of (cost - place) finds the best place to begin.
        places = np.arange(len(row))
        row = np.minimum.accumulate(without_insertions - places) + places
    return int(row[-1])


def edit_rate(references: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Edits per reference token over pairs of sequences.

    Raises:
        ValueError: the references hold not one token.
    """
    total = sum(map(len, references))
    if not total:
        raise ValueError("there is not one reference token to compare with")
    return sum(edit_distance(a, b) for a, b in zip(references, others, strict=True)) / total
