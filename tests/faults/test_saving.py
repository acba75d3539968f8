"""Faults around checkpoints, as a whole run meets them: signals, disks, flipped bits, other shards, other ranks, two writers."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechlm import runs
from speechlm.checkpoint.form import Damaged
from speechlm.checkpoint.read import read_rest, read_tensors, verify
from tests.faults.ranks import Zygote
from tests.faults.runs import Named, arguments, fault, losses, weights, write_run
from tests.test_checkpoint import write

FLIPS = 200


def fit(zygote: Zygote, folder: Path, *callbacks: Named, ranks: int = 1, env: Any = None, **more: Any) -> Any:
    """A run from start to end."""
    job = zygote.start(folder, "fit", arguments(write_run(folder, *callbacks, ranks=ranks, **more)), ranks, env=env)
    job.wait(120, grace=20)
    return job


@pytest.fixture(scope="module")
def unbroken(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of whole runs with dropout, by number of ranks."""
    folders = {ranks: tmp_path_factory.mktemp(f"whole-{ranks}") for ranks in (1, 2)}
    for ranks, folder in folders.items():
        assert fit(zygote, folder, ranks=ranks, dropout=0.3).codes() == [0] * ranks
    return folders


def same_run(folder: Path, other: Path) -> None:
    """Every loss and every weight, bit for bit."""
    assert losses(folder) == losses(other)
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- 3, 4, 5, 25: told to stop


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_told_to_stop_anywhere_in_a_step_it_saves_and_goes_on_as_if_nothing_had_been(
    zygote: Zygote, unbroken: dict[int, Path], tmp_path: Path, where: str, ranks: int, rank: int
):
    strike = fault("Strike", 3, rank=rank, kind="SIGTERM", where=where)
    job = fit(zygote, tmp_path, strike, ranks=ranks, dropout=0.3)
    assert job.codes() == [143] * ranks, job.output()
    newest = runs.newest_checkpoint(tmp_path / "runs" / "dummy")
    assert newest is not None and newest.step == 4
    assert fit(zygote, tmp_path, ranks=ranks, dropout=0.3).codes() == [0] * ranks
    same_run(tmp_path, unbroken[ranks])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_signal_before_the_limit_to_one_rank_requeues_once(
    zygote: Zygote, unbroken: dict[int, Path], tmp_path: Path, rank: int
):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    job = fit(zygote, tmp_path, fault("Strike", 3, rank=rank, kind="SIGUSR1"), ranks=2, env=env, dropout=0.3)
    assert job.codes() == [138, 138], job.output()
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert fit(zygote, tmp_path, ranks=2, dropout=0.3).codes() == [0, 0]
    same_run(tmp_path, unbroken[2])


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_the_last_whole_checkpoint_stays(
    zygote: Zygote, unbroken: dict[int, Path], tmp_path: Path
):
    job = fit(zygote, tmp_path, fault("Strike", 3, kind="SIGTERM SIGTERM", seconds=5.5), dropout=0.3)
    assert job.codes() == [-signal.SIGTERM]
    newest = runs.newest_checkpoint(tmp_path / "runs" / "dummy")
    assert newest is not None and newest.step == 2
    assert fit(zygote, tmp_path, dropout=0.3).codes() == [0]
    same_run(tmp_path, unbroken[1])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_random_numbers_moments_and_data_come_back_behind_a_kill(
    zygote: Zygote, unbroken: dict[int, Path], tmp_path: Path, ranks: int
):
    assert 0 not in fit(zygote, tmp_path, fault("Strike", 5), ranks=ranks, dropout=0.3).codes()
    assert fit(zygote, tmp_path, ranks=ranks, dropout=0.3).codes() == [0] * ranks
    same_run(tmp_path, unbroken[ranks])


# --- 17, 18: disks


@pytest.mark.parametrize("error", ["ENOSPC", "EACCES", "EROFS", "ESTALE", "EIO"])
def test_one_save_that_fails_is_said_and_training_goes_on(zygote: Zygote, tmp_path: Path, error: str):
    disk: Named = ("tests.faults.injections.FailingDisk", {"saves": [1], "error": error})
    job = fit(zygote, tmp_path, disk)
    assert job.codes() == [0] and "could not be written" in job.output() and "the one before is kept" in job.output()
    newest = runs.newest_checkpoint(tmp_path / "runs" / "dummy")
    assert newest is not None and newest.step == 8


@pytest.mark.parametrize("error", ["ENOSPC", "ESTALE"])
def test_two_saves_that_fail_end_the_run_and_the_one_before_is_whole(zygote: Zygote, tmp_path: Path, error: str):
    disk: Named = ("tests.faults.injections.FailingDisk", {"saves": [1, 2], "error": error})
    job = fit(zygote, tmp_path, disk)
    assert job.codes() == [1] and "could not be written" in job.output()
    newest = runs.newest_checkpoint(tmp_path / "runs" / "dummy")
    assert newest is not None and newest.step == 2
    verify(newest.path)


# --- 19, 20: damage


def test_all_of_two_hundred_flipped_bits_of_a_checkpoint_are_found(
    tmp_path: Path, record_property: Callable[[str, object], None]
):
    place, rng, found = write(tmp_path), np.random.default_rng(0), 0
    files = sorted(place.iterdir())
    sizes = np.array([file.stat().st_size for file in files])
    for _ in range(FLIPS):
        file = files[rng.choice(len(files), p=sizes / sizes.sum())]
        whole = file.read_bytes()
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        try:
            read_tensors(place)
            read_rest(place)
        except Damaged:
            found += 1
        file.write_bytes(whole)
    verify(place)
    assert found == FLIPS
    for name, value in {"flips": FLIPS, "injections": FLIPS, "store": "checkpoint"}.items():
        record_property(name, value)


@pytest.mark.parametrize("name", ["COMMIT", "manifest.json", "rank-00000.json", "shard-00000.safetensors"])
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(zygote: Zygote, tmp_path: Path, name: str):
    fit(zygote, tmp_path)
    before = losses(tmp_path)
    newest = runs.newest_checkpoint(tmp_path / "runs" / "dummy")
    assert newest is not None and newest.step == 8
    data = bytearray((newest.path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (newest.path / name).write_bytes(data)
    job = fit(zygote, tmp_path, steps=9)
    assert job.codes() == [0] and "passed over" in job.output()
    after = losses(tmp_path)
    assert {step: after[step] for step in before} == before and max(after) > max(before)


@pytest.mark.parametrize("what", ["of another step", "of another rank"])
def test_a_shard_of_elsewhere_is_found(tmp_path: Path, what: str):
    one, other = write(tmp_path, 1, seed=1), write(tmp_path, 2, seed=2)
    name = "shard-00000.safetensors" if what == "of another step" else "rank-00000.json"
    shutil.copy(other / name, one / name)
    with pytest.raises(Damaged):
        verify(one)


# --- 22, 24: others


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (2, 3)])
def test_a_run_goes_on_with_another_number_of_ranks(zygote: Zygote, tmp_path: Path, first: int, then: int):
    whole = tmp_path / "whole"
    assert fit(zygote, whole, ranks=1).codes() == [0]
    assert fit(zygote, tmp_path / "run", ranks=first, steps=4).codes() == [0] * first
    assert fit(zygote, tmp_path / "run", ranks=then).codes() == [0] * then
    ours, theirs = losses(tmp_path / "run"), losses(whole)
    assert ours.keys() == theirs.keys()
    assert all(ours[step] == pytest.approx(theirs[step], rel=1e-5) for step in theirs)  # all ranks have the same data


def test_a_second_run_in_the_same_folder_is_refused(zygote: Zygote, tmp_path: Path):
    slow: Named = ("tests.faults.injections.Slow", {"rank": 0, "seconds": 0.5})
    config = write_run(tmp_path, slow, ranks=1, steps=12)
    first = zygote.start(tmp_path, "fit", arguments(config), 1)
    lock = tmp_path / "runs" / "dummy" / "checkpoints" / ".lock"
    while not lock.exists():
        assert first.codes() == [None], first.output()
    second = zygote.start(tmp_path, "fit", arguments(config), 1)
    assert second.wait(60) not in ([0], [None])
    assert first.wait(60) == [0], first.output()
    assert max(losses(tmp_path)) == 11 and json.dumps(second.output())
