"""Progress says how fast, how much is left, and only what is true."""

import pytest

from callbacks import work_progress
from callbacks.work_progress import WorkProgress


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(work_progress, "time", clock)
    return clock


def test_speed_and_time_left_come_from_what_was_made_not_from_what_was_there(clock: Clock, capsys):
    progress = WorkProgress(total=1000, title="rank 1 of 4", bar=False)
    assert progress.eta() == "?"
    clock.now += 50  # spent on verifying
    progress.kept(600)
    clock.now += 20
    progress.made(100, seconds=900.0, padded_seconds=1000.0)
    assert progress.times_real_time == pytest.approx(45.0)
    assert progress.padding_share == pytest.approx(0.1)
    assert progress.eta() == "0:01:00"
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "rank 1 of 4  700/1000 cuts  0.25 h  45 x real time, 10.0% padding  eta 0:01:00"


def test_lines_come_now_and_then(clock: Clock, capsys):
    progress = WorkProgress(total=100, bar=False, every_sec=10.0)
    for _ in range(100):
        clock.now += 1
        progress.made(1, 1.0, 1.0)
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_a_bar_is_drawn_and_taken_down(capsys):
    with WorkProgress(total=10, bar=True) as progress:
        progress.made(5, 100.0, 100.0)
        bar, task = progress._bar
        assert bar.tasks[task].completed == 5 and "x real time" in bar.tasks[task].fields["speed"]
    assert bar.finished is False and not bar.live.is_started
