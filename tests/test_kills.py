"""Killed at random steps and resumed, a run is the run that was never killed; told to stop, it ends with a code that says so."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechlm import runs
from tests import kills
from tests.faults.ranks import Zygote

STEPS = 22


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_five_kills_change_no_bit_of_rows_losses_and_weights(zygote: Zygote, tmp_path: Path, ranks: int):
    """With random numbers drawn in every step, validations in between, and kills while checkpoints are written."""
    whole = kills.unbroken(zygote, tmp_path / "whole", ranks, STEPS, noise=0.1)
    broken = kills.broken(zygote, tmp_path / "broken", kills.plan(5, [ranks], seed=ranks), STEPS, noise=0.1)
    assert kills.compare(broken, whole, same_ranks=True) == 0.0


def test_resumed_on_two_then_one_then_four_ranks_it_sees_the_same_rows_and_ends_at_the_same_weights(
    zygote: Zygote, tmp_path: Path
):
    whole = kills.unbroken(zygote, tmp_path / "whole", 1, STEPS, noise=0.0)
    broken = kills.broken(zygote, tmp_path / "broken", kills.plan(6, [2, 1, 4], seed=9), STEPS, noise=0.0)
    assert kills.compare(broken, whole, same_ranks=False) < 1e-4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_signal_to_one_rank_saves_on_all_and_ends_with_its_code(
    zygote: Zygote, tmp_path: Path, number: signal.Signals, code: int
):
    whole = kills.unbroken(zygote, tmp_path / "whole", 2, 6, noise=0.1)
    folder = tmp_path / "told"
    folder.mkdir()
    told = {"rank": 1, "step": 2, "number": int(number)}
    assert kills.start(zygote, folder, 2, 6, 0.1, told=told) == [code, code]
    found = runs.newest_checkpoint(folder)
    assert found is not None and found.step == 3
    kills.start(zygote, folder, 2, 6, 0.1)
    assert kills.compare(folder, whole, same_ranks=True) == 0.0
