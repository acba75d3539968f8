"""Faults of processes: killed, stopped, slow, wrong; jobs of one and two ranks, with real signals."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.ranks import Job, Zygote
from tests.faults.runs import Named, arguments, fault, losses, weights, write_run

FINITE: Named = ("callbacks.finite_guard.FiniteGuard", {})


def watchdog(seconds: float = 1.5) -> Named:
    return "callbacks.hang_watchdog.HangWatchdog", {
        "timeout_sec": seconds,
        "first_timeout_sec": 20.0,
        "grace_sec": 1.0,
    }


@pytest.fixture(scope="module")
def unbroken(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of runs that nothing happened to, by number of ranks."""
    folders = {}
    for ranks in (1, 2):
        folders[ranks] = tmp_path_factory.mktemp(f"unbroken-{ranks}")
        config = write_run(folders[ranks], ranks=ranks)
        assert zygote.start(folders[ranks], "fit", arguments(config), ranks).wait() == [0] * ranks
    return folders


def start(zygote: Zygote, folder: Path, *callbacks: Named, ranks: int = 2, steps: int = 8, **more: Any) -> Job:
    """A short run without the command line."""
    settings = {"folder": str(folder), "callbacks": list(callbacks), "ranks": ranks, "steps": steps, **more}
    return zygote.start(folder, "train", settings, ranks)


def same_run(folder: Path, other: Path) -> None:
    """Every loss and every weight, bit for bit."""
    assert losses(folder) == losses(other)
    ours, theirs = weights(folder), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- 1, 2: killed


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 0), (2, 1), (2, None)])
@pytest.mark.parametrize("step", [1, 5])
def test_killed_in_a_step_and_started_again_it_is_the_unbroken_run(
    zygote: Zygote, unbroken: dict[int, Path], tmp_path: Path, ranks: int, rank: int | None, step: int
):
    begun = time.monotonic()
    config = write_run(tmp_path, fault("Strike", step, rank=rank), ranks=ranks)
    codes = zygote.start(tmp_path, "fit", arguments(config), ranks).wait()
    assert -signal.SIGKILL in codes and 0 not in codes and time.monotonic() - begun < 30
    again = write_run(tmp_path, ranks=ranks)
    assert zygote.start(tmp_path, "fit", arguments(again), ranks).wait() == [0] * ranks
    same_run(tmp_path, unbroken[ranks])


# --- 8, 9: errors


@pytest.mark.parametrize("kind", ["error", "abort", "segfault"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_ends_all_and_names_itself(zygote: Zygote, tmp_path: Path, kind: str, rank: int):
    job = start(zygote, tmp_path, fault("Strike", 3, rank=rank, kind=kind))
    codes = job.wait(30)
    assert 0 not in codes and None not in codes
    if kind == "error":
        assert "a deliberate error" in job.output(rank)
    else:
        assert codes[rank] == -(signal.SIGABRT if kind == "abort" else signal.SIGSEGV)


# --- 6, 10: no progress


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_the_job_within_the_watchdogs_time_and_is_named(zygote: Zygote, tmp_path: Path, rank: int):
    job = start(zygote, tmp_path, watchdog(), fault("Strike", 3, rank=rank, kind="SIGSTOP"))
    other = 1 - rank
    while job.codes()[other] is None:
        assert time.monotonic() - job.started < 20
        time.sleep(0.05)
    job.kill()
    said = job.output(other)
    assert f"rank {other} made no progress" in said and f"no stacks from rank {rank}" in said
    stacks = (tmp_path / "stacks" / f"rank-{other:05d}.txt").read_text()
    assert "most recent call first" in stacks and "step 3" in stacks


@pytest.mark.parametrize("kind", ["sleep", "hold lock"])
def test_a_rank_that_hangs_is_found_in_the_stacks_of_all(zygote: Zygote, tmp_path: Path, kind: str):
    job = start(zygote, tmp_path, watchdog(), fault("Strike", 3, rank=1, kind=kind, seconds=30))
    codes = job.wait(20, grace=4)
    assert codes[0] == 1 and time.monotonic() - job.started < 20
    stacks = [(tmp_path / "stacks" / f"rank-{r:05d}.txt").read_text() for r in (0, 1)]
    assert all("most recent call first" in text for text in stacks)
    assert "in on_before_backward" in stacks[1] and "injections.py" in stacks[1]
    assert "injections.py" not in stacks[0]


def test_one_process_that_holds_the_lock_is_ended_too(zygote: Zygote, tmp_path: Path):
    job = start(zygote, tmp_path, watchdog(), fault("Strike", 3, kind="hold lock", seconds=300), ranks=1)
    assert job.wait(90) == [1] and time.monotonic() - job.started < 80
    assert "injections.py" in (tmp_path / "stacks" / "rank-00000.txt").read_text()


def test_a_watchdog_leaves_a_run_alone_that_goes_on(zygote: Zygote, tmp_path: Path):
    slow: Named = ("tests.faults.injections.Slow", {"rank": 0, "seconds": 0.5})
    assert start(zygote, tmp_path, watchdog(1.5), slow).wait() == [0, 0]


# --- 7: slow


@pytest.mark.parametrize("where", ["forward", "data"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_slow_rank_is_named_within_fifty_steps_and_training_goes_on(
    zygote: Zygote, tmp_path: Path, where: str, rank: int
):
    report: Named = ("callbacks.stragglers.StragglerReport", {"every": 10})
    slow: Named = ("tests.faults.injections.Slow", {"rank": rank, "seconds": 0.05})
    if where == "forward":
        job = start(zygote, tmp_path, report, slow, steps=24)
    else:
        job = start(zygote, tmp_path, report, steps=24, slow_data=(rank, 0.05))
    assert job.wait() == [0, 0]
    named = set(re.findall(rf"rank (\d) is a straggler at step \d+: {where}", job.output(0)))
    assert str(rank) in named


# --- 29 to 32: numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["BadGradient", "BadLoss"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bad_number_on_one_rank_leaves_out_the_update_of_all(
    zygote: Zygote, tmp_path: Path, name: str, value: float, rank: int
):
    check: Named = ("callbacks.replica_check.ReplicaCheck", {"every": 1})
    job = start(zygote, tmp_path, fault(name, 3, rank=rank, value=value), FINITE, check)
    assert job.wait() == [0, 0], job.output()
    for r in (0, 1):
        assert re.findall(r"the update of step (\d+) was left out", job.output(r)) == ["3"]
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in end.values())


def test_ten_bad_ones_in_a_row_rewind_both_ranks_alike_and_a_resumed_run_knows_of_it(zygote: Zygote, tmp_path: Path):
    rewind: Named = ("callbacks.rewind.Rewind", {"after": 3, "every": 2, "margin": 0})
    check: Named = ("callbacks.replica_check.ReplicaCheck", {"every": 1})
    config = write_run(tmp_path, fault("BadGradient", *range(4, 14), rank=1), FINITE, rewind, check, steps=18)
    job = zygote.start(tmp_path, "fit", arguments(config), 2)
    assert job.wait() == [0, 0], job.output()
    assert [re.findall(r"rewound at step (\d+)", job.output(r)) for r in (0, 1)] == [["7", "10", "13"]] * 2
    again = write_run(tmp_path, fault("BadGradient", *range(18, 30)), FINITE, rewind, steps=30)
    job = zygote.start(tmp_path, "fit", arguments(again), 2)
    assert 0 not in job.wait() and "3 rewinds (at steps [7, 10, 13]) did not help" in job.output()


@pytest.mark.slow
def test_under_fsdp2_guards_change_nothing_until_there_is_something(zygote: Zygote, tmp_path: Path):
    ends = {}
    for name, guarded, poisoned in (("bare", False, []), ("guarded", True, []), ("poisoned", True, [2, 3])):
        folder = tmp_path / name
        folder.mkdir()
        settings = {"folder": str(folder), "guarded": guarded, "poisoned": poisoned}
        job = zygote.start(folder, "train_lm", settings, 2)
        assert job.wait(90) == [0, 0], job.output()
        ends[name] = torch.load(folder / "end.pt", weights_only=True)
        for rank in (0, 1):
            assert re.findall(r"the update of step (\d+) was left out on all", job.output(rank)) == [
                str(s) for s in poisoned
            ]
    bare, guarded, poisoned_end = ends["bare"]["state"], ends["guarded"]["state"], ends["poisoned"]
    assert all(torch.equal(bare[name], guarded[name]) for name in bare) and ends["guarded"]["checked"] == 6
    assert poisoned_end["rewound"] == [4] and all(t.isfinite().all() for t in poisoned_end["state"].values())


# --- 33, 34: silent corruption


@pytest.mark.parametrize("bit", [0, 12, 23, 30, 31])
@pytest.mark.parametrize("rank", [1])
def test_one_flipped_bit_of_one_weight_is_found_and_the_ranks_are_named(
    zygote: Zygote, tmp_path: Path, bit: int, rank: int
):
    check: Named = ("callbacks.replica_check.ReplicaCheck", {"every": 2})
    job = start(zygote, tmp_path, fault("FlippedBit", 3, rank=rank, bit=bit, parameter=1), check)
    assert 0 not in job.wait()
    assert re.search(r"silent corruption: at step 4 the ranks all differ in \d+ tensors \(net\.0\.bias", job.output())


def test_of_three_ranks_the_one_that_differs_is_named(zygote: Zygote, tmp_path: Path):
    check: Named = ("callbacks.replica_check.ReplicaCheck", {"every": 2})
    job = start(zygote, tmp_path, fault("FlippedBit", 3, rank=2, parameter=1), check, ranks=3)
    assert 0 not in job.wait() and "rank 2 differs from the other 2" in job.output()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_layer_computed_wrongly_is_found_with_its_rank(zygote: Zygote, tmp_path: Path, rank: int):
    check: Named = ("callbacks.recompute_check.RecomputeCheck", {"every": 2})
    job = start(zygote, tmp_path, check, fault("WrongLayer", 4, rank=rank))
    assert 0 not in job.wait() and f"net.0 (step 4, rank {rank}) gave other numbers" in job.output(rank)
