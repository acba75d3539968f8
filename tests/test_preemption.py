"""A run that is told to stop leaves no gap: every step of it is logged once, before the end or after the restart."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from speechlm import runs
from tests.fit_runs import CONFIG, run, write_config


class Strike(L.Callback):
    """Sends a signal to its own process at the beginning of a step.

    Args:
        step: before which.
        name: of the signal.
    """

    def __init__(self, step: int, name: str = "SIGUSR1") -> None:
        self.step, self.name = step, name

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Strike."""
        if trainer.global_step == self.step:
            self.step = -1
            os.kill(os.getpid(), signal.Signals[self.name])


def struck(folder: Path, step: int, name: str = "SIGUSR1", **trainer: Any) -> Path:
    """The config of a run of six steps that is struck at one of them."""
    strike = {"class_path": "tests.test_preemption.Strike", "init_args": {"step": step, "name": name}}
    return write_config(folder, trainer={**CONFIG["trainer"], "max_steps": 6, "callbacks": [strike], **trainer})


def logged(folder: Path) -> list[int]:
    """Steps in the order of the log."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 138), ("SIGTERM", 143)])
def test_a_stopped_run_saves_and_logs_the_step_it_was_at_and_goes_on_behind_it(tmp_path: Path, name: str, code: int):
    config = struck(tmp_path, 3, name)
    with pytest.raises(SystemExit) as stopped:
        run(config)
    assert stopped.value.code == code
    folder = tmp_path / "runs/dummy"
    newest = runs.newest_checkpoint(folder)
    assert newest is not None and newest.step == 4
    assert logged(folder) == [0, 1, 2, 3]
    run(config)
    assert logged(folder) == [0, 1, 2, 3, 4, 5]


def test_a_run_stopped_before_a_validation_leaves_before_it(tmp_path: Path):
    config = struck(tmp_path, 2, val_check_interval=3, limit_val_batches=1)
    with pytest.raises(SystemExit):
        run(config)
    assert "val/dummy/loss" not in (tmp_path / "runs/dummy/metrics.jsonl").read_text()
    assert logged(tmp_path / "runs/dummy") == [0, 1, 2]


def test_a_run_told_to_stop_at_its_last_step_has_ended(tmp_path: Path):
    folder = run(struck(tmp_path, 5))
    assert logged(folder) == [0, 1, 2, 3, 4, 5]
