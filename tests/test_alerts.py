"""Alerts come when something is wrong, once, with numbers; a healthy run is quiet."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.alerts import Alerts, StallWatch
from callbacks.wandb_log import WandbLog
from tests.fit_runs import CONFIG, run, write_config


def told(folder: Path) -> list[dict[str, Any]]:
    path = folder / "alerts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def alerts(tmp_path: Path) -> Alerts:
    made = Alerts(quiet_sec=0.0, window=40)
    made._folder = tmp_path
    return made


def falling(alerts: Alerts, count: int = 100, start: float = 6.0) -> None:
    """A noisy loss that falls."""
    noise = torch.randn(count, generator=torch.Generator().manual_seed(0))
    for step in range(count):
        alerts.see({"train/loss": start - 0.01 * step + 0.05 * float(noise[step])}, step)


def test_a_healthy_run_is_quiet(alerts: Alerts, tmp_path: Path):
    falling(alerts, 1000, 12.0)
    for step, usage in enumerate((0.4, 0.9, 0.7, 0.95)):
        alerts.see({"codebook/usage": usage, "val/text/loss": 3.0 - 0.1 * step, "train/skipped_updates": 0.0}, step)
    assert told(tmp_path) == []


def test_a_spike_is_told_with_its_numbers(alerts: Alerts, tmp_path: Path):
    falling(alerts)
    alerts.see({"train/loss": 5.4}, 100)
    assert told(tmp_path) == []
    alerts.see({"train/loss": 7.5}, 101)
    (line,) = told(tmp_path)
    assert line["kind"] == "spike" and line["step"] == 101 and "7.5" in line["text"] and "median" in line["text"]


def test_a_loss_that_is_no_number_is_told_and_does_not_hide_a_spike_after_it(alerts: Alerts, tmp_path: Path):
    falling(alerts)
    alerts.see({"train/loss": math.nan, "train/grad_norm": math.inf}, 100)
    alerts.see({"train/loss": 9.0}, 101)
    nan, spike = told(tmp_path)
    assert nan["kind"] == "nan" and "train/loss = nan, train/grad_norm = inf" in nan["text"]
    assert spike["kind"] == "spike"


def test_updates_left_out_are_told_when_there_are_more(alerts: Alerts, tmp_path: Path):
    for step, count in enumerate((0.0, 2.0, 2.0, 3.0)):
        alerts.see({"train/skipped_updates": count}, step)
    assert [line["step"] for line in told(tmp_path)] == [1, 3]


def test_codes_that_die_or_never_lived_are_told(alerts: Alerts, tmp_path: Path):
    alerts.usage_from_step = 100
    for step, usage in ((1, 0.8), (2, 0.5), (3, 0.3)):
        alerts.see({"codebook/usage": usage}, step)
    assert [(line["kind"], line["step"]) for line in told(tmp_path)] == [("dead_codes", 3)]
    fresh = Alerts(usage_from_step=100)
    fresh._folder = tmp_path / "fresh"
    fresh.see({"codebook/usage": 0.01}, 99)
    fresh.see({"codebook/usage": 0.01}, 100)
    assert [line["step"] for line in told(tmp_path / "fresh")] == [100]


def test_text_that_is_forgotten_is_told_against_the_lowest_also_after_a_restart(alerts: Alerts, tmp_path: Path):
    alerts.see({"val/text/loss": 3.2, "val/text/loss_text": 3.0, "val/speech/loss": 5.0}, 1)
    alerts.see({"val/text/loss_text": 2.9, "val/speech/loss": 9.0}, 2)
    again = Alerts()
    again._folder = tmp_path
    again.load_state_dict(json.loads(json.dumps(alerts.state_dict())))
    again.see({"val/text/loss_text": 2.98}, 3)
    assert told(tmp_path) == []
    again.see({"val/text/loss_text": 3.0}, 4)
    (line,) = told(tmp_path)
    assert line["kind"] == "text_loss" and "3.4% above the lowest, 2.9" in line["text"]


def test_the_same_kind_is_not_told_again_at_once(tmp_path: Path):
    alerts = Alerts(quiet_sec=3600.0)
    alerts._folder = tmp_path
    for step in range(3):
        alerts.see({"train/loss": math.nan}, step)
    assert len(told(tmp_path)) == 1


def test_a_step_that_does_not_end_is_told_once_and_a_validation_is_none():
    stalls: list[tuple[int, float]] = []
    watch = StallWatch(0.2, lambda step, waited, usual: stalls.append((step, waited)))
    for step in range(3):
        watch.step(step)
    watch.pause()
    time.sleep(0.5)
    assert stalls == []
    watch.go_on()
    time.sleep(0.7)
    watch.stop()
    assert [step for step, _ in stalls] == [2] and stalls[0][1] > 0.2


def test_a_run_that_goes_wrong_tells_w_and_b_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent: list[str] = []
    monkeypatch.setattr(WandbLog, "alert", lambda self, title, text: sent.append(title))
    trainer = {
        **CONFIG["trainer"],
        "callbacks": [{"class_path": "callbacks.alerts.Alerts"}],
        "logger": {"class_path": "callbacks.wandb_log.WandbLog", "init_args": {"offline": True}},
    }
    folder = run(write_config(tmp_path, trainer=trainer), "--model.init_args.lr", "1e30")
    kinds = [line["kind"] for line in told(folder)]
    assert kinds == ["nan"] and sent == [f"nan at step {told(folder)[0]['step']}"]


def test_an_error_that_ends_a_run_is_told_without_the_secrets_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-in-an-error")

    def fails(*_: object) -> None:
        raise RuntimeError("the server said canary-in-an-error")

    monkeypatch.setattr("tests.dummies.DummyStage.training_step", fails)
    with pytest.raises(RuntimeError, match="the server"):
        run(
            write_config(
                tmp_path, trainer={**CONFIG["trainer"], "callbacks": [{"class_path": "callbacks.alerts.Alerts"}]}
            )
        )
    (line,) = told(tmp_path / "runs/dummy")
    assert line["kind"] == "crash" and "RuntimeError: the server said" in line["text"] and "canary" not in line["text"]


def test_settings_that_would_never_tell_are_refused():
    with pytest.raises(ValueError, match="window >= 20"):
        Alerts(window=3)
