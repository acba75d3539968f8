"""Cuts with tokens: truncated together with their audio, in any process, by Lhotse's reader too."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet
from torch.utils.data import DataLoader

from datamodules.cuts import read_cuts, write_cuts
from datamodules.recordings import load_recording
from datamodules.token_cuts import read_token_cuts, tokens_of
from speechlm.tokens.clock import Clock
from tests.token_corpus import corpus, expected_tokens, tokenized


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return tokenized(folder, corpus(folder / "corpus"))


@pytest.fixture(scope="module")
def longest(made: Path):
    return max(read_token_cuts(made), key=lambda cut: cut.duration)


def test_a_truncated_cut_has_the_tokens_of_its_samples(longest):
    whole = tokens_of(longest)
    for first, count in ((0, 5), (3, 7), (10, 1)):
        part = longest.truncate(offset=0.08 * first, duration=0.08 * count)
        assert np.array_equal(tokens_of(part), whole[first : first + count])
        assert np.array_equal(part.load_speech_tokens(), whole[first : first + count])


def test_tokens_that_a_truncated_cut_has_in_part_are_with_it(longest):
    whole = tokens_of(longest)
    part = longest.truncate(offset=0.1, duration=0.1)  # samples 1600 to 3200 of tokens 1 and 2
    assert np.array_equal(tokens_of(part), whole[1:3])


def test_the_last_partly_filled_token_is_never_lost(made: Path):
    lost = 0
    for cut in read_token_cuts(made):
        assert len(tokens_of(cut)) == Clock().num_tokens(cut.num_samples) == cut.speech_tokens.shape[0]
        lost += len(cut.load_speech_tokens()) < len(tokens_of(cut))
    assert lost > 0  # by Lhotse's rounding: that is why there is `tokens_of`


def test_a_cut_that_begins_inside_its_recording_keeps_its_own_tokens(tmp_path: Path):
    cuts = read_cuts(corpus(tmp_path / "corpus"))
    parts = [cut.truncate(offset=0.05, duration=0.9, preserve_id=True) for cut in cuts if cut.duration > 1]
    write_cuts(parts, tmp_path / "parts.jsonl")
    for cut in read_token_cuts(tokenized(tmp_path, tmp_path / "parts.jsonl")):
        assert cut.start == cut.speech_tokens.start == 0.05
        assert np.array_equal(tokens_of(cut), expected_tokens(load_recording(cut, Clock())))


def test_cuts_survive_pickling_worker_processes_and_being_written_elsewhere(made: Path, tmp_path: Path):
    cuts = list(read_token_cuts(made))
    expected = [tokens_of(cut) for cut in cuts]
    write_cuts(reversed(cuts), tmp_path / "elsewhere.jsonl")
    again = reversed(list(read_cuts(tmp_path / "elsewhere.jsonl")))
    loader = DataLoader(cuts, batch_size=None, num_workers=1, collate_fn=tokens_of)
    for tokens, cut, pickled, worked in zip(expected, again, map(pickle.dumps, cuts), loader, strict=True):
        assert np.array_equal(tokens_of(cut), tokens)
        assert np.array_equal(tokens_of(pickle.loads(pickled)), tokens)  # noqa: S301 - ours
        assert np.array_equal(worked, tokens)


def test_the_folder_can_move(made: Path, tmp_path: Path):
    expected = [tokens_of(cut) for cut in read_token_cuts(made)]
    moved = tmp_path / "moved"
    made.rename(moved)
    try:
        there = [tokens_of(cut) for cut in read_token_cuts(moved)]
    finally:
        moved.rename(made)
    assert all(np.array_equal(a, b) for a, b in zip(there, expected, strict=True))


def test_lhotse_reads_the_shar_folder(made: Path):
    theirs = list(CutSet.from_shar(in_dir=str(made / "shar")))
    for cut, own in zip(theirs, read_token_cuts(made), strict=True):
        assert cut.id == own.id
        assert cut.load_speech_tokens().dtype == np.uint16
        assert np.array_equal(cut.load_speech_tokens(), own.load_speech_tokens())


def test_a_cut_without_tokens_is_named(tmp_path: Path):
    cut = next(iter(read_cuts(corpus(tmp_path))))
    with pytest.raises(ValueError, match=f"cut {cut.id} carries no speech_tokens"):
        tokens_of(cut)
