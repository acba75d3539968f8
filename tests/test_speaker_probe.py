"""The probe finds speakers that are in the tokens, and no others."""

import numpy as np
import pytest
import torch

from speechlm.evals.speaker_probe import _folds, cross_validated, speaker_leakage

CODES = 50


def recordings(per_speaker: int, leak: float, seed: int = 0) -> tuple[list[np.ndarray], list[str], list[np.ndarray]]:
    """Four speakers; with probability `leak` a token is out of the speaker's own ten codes. Their log-mels lie apart."""
    rng = np.random.default_rng(seed)
    codes, names, mels = [], [], []
    for speaker in range(4):
        for _ in range(per_speaker):
            own = rng.random(60) < leak
            codes.append(np.where(own, 10 * speaker + rng.integers(10, size=60), rng.integers(CODES, size=60)))
            names.append(f"s{speaker}")
            mels.append(rng.standard_normal((20, 80)) + np.roll(np.arange(20), 5 * speaker)[:, None])
    return codes, names, mels


def test_speakers_with_codes_of_their_own_are_found():
    found = speaker_leakage(*recordings(10, leak=0.6), CODES)
    assert found is not None
    assert (found.speakers, found.recordings, found.chance) == (4, 40, 0.25)
    assert found.from_tokens > 0.9 and found.from_log_mel == 1.0 and found.leakage > 0.85
    assert found.low <= found.from_tokens <= found.high


def test_tokens_that_say_nothing_of_the_speaker_leave_the_probe_at_chance():
    found = speaker_leakage(*recordings(30, leak=0.0), CODES)
    assert found is not None and abs(found.from_tokens - 0.25) < 0.12
    assert found.leakage < 0.15 and found.from_log_mel == 1.0


def test_order_alone_gives_speakers_away():
    """The same tokens equally often, but one speaker's run upwards and the other's downwards."""
    rng = np.random.default_rng(0)
    ramps = [np.roll(np.arange(CODES), rng.integers(CODES)) for _ in range(40)]
    codes = [ramp if i % 2 else ramp[::-1].copy() for i, ramp in enumerate(ramps)]
    mels = [rng.standard_normal((4, 10)) for _ in codes]
    found = speaker_leakage(codes, ["up" if i % 2 else "down" for i in range(40)], mels, CODES)
    assert found is not None and found.from_tokens > 0.9
    assert found.leakage is None or found.leakage > 1  # here the log-mel says nothing


def test_a_recording_is_never_judged_by_a_probe_that_has_seen_it():
    """Random labels can be learnt by heart, but not found."""
    rng = np.random.default_rng(0)
    features = np.eye(80, dtype=np.float32)
    labels = rng.integers(2, size=80)
    assert cross_validated(torch.from_numpy(features), labels).mean() < 0.65


def test_every_speaker_is_in_several_folds():
    labels = np.array([0] * 7 + [1] * 2 + [2] * 3)
    fold = _folds(labels, seed=0)
    for label in range(3):
        counts = np.bincount(fold[labels == label])
        assert (counts > 0).sum() >= 2 and counts.max() - counts[counts > 0].min() <= 1


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "a", "a"], ["", "", ""], ["a", "a", ""]])
def test_too_few_speakers_are_no_measurement(names: list[str]):
    assert speaker_leakage([np.arange(5)] * 3, names, [np.ones((4, 5))] * 3, CODES) is None
