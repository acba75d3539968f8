"""Jobs that can not begin as they were meant to: ends at once, with the reason; and clocks that jump."""

import socket
import time
from pathlib import Path

import pytest
import torch

from tests.faults.ranks import Zygote, free_port
from tests.faults.runs import Named, arguments, write_run
from tests.test_guards import train

WATCHDOG: Named = (
    "callbacks.hang_watchdog.HangWatchdog",
    {"timeout_sec": 20.0, "first_timeout_sec": 20.0, "start_timeout_sec": 4.0},
)


@pytest.mark.parametrize("present", [0, 1])
def test_a_rank_that_never_comes_ends_the_job_in_time(zygote: Zygote, tmp_path: Path, present: int):
    config = write_run(tmp_path, WATCHDOG)
    job = zygote.start(tmp_path, "fit", arguments(config), 2, only=[present])
    assert job.wait(60) == [1] and time.monotonic() - job.started < 60
    assert "most recent call first" in job.output()


def test_a_port_that_is_taken_is_said_at_once(zygote: Zygote, tmp_path: Path):
    port = free_port()
    with socket.socket() as held:
        held.bind(("127.0.0.1", port))
        held.listen()
        job = zygote.start(tmp_path, "fit", arguments(write_run(tmp_path, WATCHDOG)), 2, only=[0], port=port)
        assert job.wait(60) not in ([0], [None]) and "EADDRINUSE" in job.output()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--model.init_args.lr=0.2", "model.init_args.lr"),
        ("--trainer.accumulate_grad_batches=2", "accumulate_grad_batches"),
    ],
)
@pytest.mark.parametrize("rank", [1])
def test_ranks_with_different_configs_are_refused(zygote: Zygote, tmp_path: Path, change: str, named: str, rank: int):
    settings = {**arguments(write_run(tmp_path)), "only_on": {str(rank): [change]}}
    job = zygote.start(tmp_path, "fit", settings, 2)
    assert 0 not in job.wait(60)
    assert "the ranks of this run have different configs" in job.output() and f"{named}: " in job.output()


@pytest.mark.parametrize("jump", [-86_400.0, 3600.0, 1e9])
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, jump: float, monkeypatch: pytest.MonkeyPatch):
    ends = []
    for name in ("steady", "jumps"):
        stage, _ = train(tmp_path / name)
        ends.append(torch.cat([p.detach().flatten() for p in stage.parameters()]))
        real, calls = time.time, iter(range(10**9))
        monkeypatch.setattr(time, "time", lambda real=real, calls=calls: real() + jump * (next(calls) % 2))
    assert torch.equal(*ends)
