"""How much of the speaker is left in the tokens: a linear probe on which tokens, and which pairs of them, a recording has.

A tokenizer that carries what is said and not who says it leaves the probe at chance. The same probe on the mean and spread of the
log-mel says how well these speakers can be told apart at all; what lies between chance and that is what the tokens leak.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
PAIR_BINS = 4096  # pairs of tokens are hashed into so many
WEIGHT_DECAY = 1e-3
MAX_RECORDINGS = 4000


@dataclass(frozen=True)
class SpeakerLeakage:
    """How well speakers are told apart, each counting the same.

    Attributes:
        speakers: of whom there are at least two recordings.
        recordings: of these speakers.
        chance: 1 / speakers.
        from_tokens: share of recordings given to the right speaker, averaged over speakers; a recording is judged by a probe that
            has not seen it.
        low, high: 95 % interval of `from_tokens` from resampling each speaker's recordings.
        from_log_mel: the same probe on mean and spread of the log-mel.
        leakage: where between chance (0) and `from_log_mel` (1) the tokens lie; below 0 counts as 0, None where the log-mel
            itself says nothing.
    """

    speakers: int
    recordings: int
    chance: float
    from_tokens: float
    low: float
    high: float
    from_log_mel: float
    leakage: float | None


def speaker_leakage(
    sequences: list[np.ndarray], speakers: list[str], log_mels: list[np.ndarray], num_codes: int, seed: int = 0
) -> SpeakerLeakage | None:
    """Train and judge both probes.

    Args:
        sequences: (T,) codes of each recording.
        speakers: of each recording, "" where unknown.
        log_mels: (M, F) of each recording.
        num_codes: V.
        seed: of the folds and the resampling.

    Returns:
        None where fewer than two speakers have two recordings.
    """
    picked = _with_company(sequences, speakers, seed)
    names = sorted({speakers[i] for i in picked})
    if len(names) < 2:
        return None
    labels = np.array([names.index(speakers[i]) for i in picked])
    right = cross_validated(_token_features([sequences[i] for i in picked], num_codes), labels, seed)
    heard = cross_validated(_log_mel_features([log_mels[i] for i in picked]), labels, seed)
    low, high = _interval(right, labels, seed)
    chance, from_tokens, from_log_mel = 1 / len(names), _by_speaker(right, labels), _by_speaker(heard, labels)
    room = from_log_mel - chance
    leakage = max(0.0, (from_tokens - chance) / room) if room > 0.05 else None
    return SpeakerLeakage(len(names), len(picked), chance, from_tokens, low, high, from_log_mel, leakage)


def cross_validated(features: Tensor, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n,) bool: whether a probe trained on the other folds gives each of (n, D) recordings its label."""
    fold = _folds(labels, seed)
    right = np.zeros(len(labels), dtype=bool)
    for number in range(int(fold.max()) + 1):
        held = fold == number
        probe = _train(features[~held], torch.from_numpy(labels[~held]), int(labels.max()) + 1)
        right[held] = probe(features[held]).argmax(dim=1).numpy() == labels[held]
    return right


def _train(features: Tensor, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Logistic regression on standardised features, every class weighing the same."""
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    x = (features - mean) / spread / features.shape[1] ** 0.5
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    share = torch.bincount(labels, minlength=classes).clamp(min=1).float().reciprocal()
    optimizer = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T, labels, weight=share) + WEIGHT_DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda new: ((new - mean) / spread / features.shape[1] ** 0.5) @ weight.detach().T


def _with_company(sequences: list[np.ndarray], speakers: list[str], seed: int) -> list[int]:
    """Recordings with tokens whose speaker has another, at most `MAX_RECORDINGS` of them."""
    usable = [i for i, name in enumerate(speakers) if name and len(sequences[i])]
    if len(usable) > MAX_RECORDINGS:
        usable = sorted(np.random.default_rng(seed).choice(usable, MAX_RECORDINGS, replace=False).tolist())
    counts: dict[str, int] = {}
    for i in usable:
        counts[speakers[i]] = counts.get(speakers[i], 0) + 1
    return [i for i in usable if counts[speakers[i]] > 1]


def _folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """(n,) fold of each recording; every label is in as many folds as it has recordings, and never in one alone."""
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        fold[places] = np.arange(len(places)) % FOLDS
    return fold


def _token_features(sequences: list[np.ndarray], num_codes: int) -> Tensor:
    """(n, V + bins): square roots of the shares of tokens and of pairs, so that rare ones count; only those that occur."""
    rows = torch.zeros(len(sequences), num_codes + PAIR_BINS)
    for row, codes in zip(rows, sequences, strict=True):
        pairs = (codes[:-1] * 1_000_003 + codes[1:]) % PAIR_BINS
        row[:num_codes] = torch.from_numpy(np.bincount(codes, minlength=num_codes)) / len(codes)
        row[num_codes:] = torch.from_numpy(np.bincount(pairs, minlength=PAIR_BINS)) / max(1, len(pairs))
    return rows[:, rows.sum(dim=0) > 0].sqrt()


def _log_mel_features(log_mels: list[np.ndarray]) -> Tensor:
    """(n, 2 M): mean and standard deviation of every band."""
    rows = [np.concatenate([mel.mean(axis=1), mel.std(axis=1)]) for mel in log_mels]
    return torch.from_numpy(np.stack(rows)).float()


def _by_speaker(right: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _interval(right: np.ndarray, labels: np.ndarray, seed: int, resamples: int = 1000) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for label in np.unique(labels):
        own = right[labels == label]
        total += own[rng.integers(len(own), size=(resamples, len(own)))].mean(axis=1)
    low, high = np.quantile(total / len(np.unique(labels)), [0.025, 0.975])
    return float(low), float(high)
