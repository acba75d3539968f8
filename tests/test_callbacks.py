"""What the callbacks write down is true, and nothing of it can stop a run."""

import json
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml

from callbacks.checkpoint import CheckpointIO
from callbacks.codebook import CodebookPicture
from callbacks.jsonl import JsonlLogger, read_metrics
from callbacks.progress import PlainProgress
from callbacks.skips import SkipCounts
from callbacks.throughput import Throughput
from callbacks.wandb_log import WandbLog
from speechlm.tokens.clock import Clock
from tests.dummies import DummyData, DummyStage, Stream
from tests.fit_runs import CONFIG, run, write_config


def train(folder: Path, *callbacks: L.Callback, data: DummyData | None = None, **settings) -> JsonlLogger:
    """Train the dummy stage with some callbacks and the JSON log."""
    logger = JsonlLogger(str(folder))
    defaults = {"max_steps": 4, "limit_val_batches": 0, "log_every_n_steps": 1, "enable_progress_bar": False}
    quiet = {"enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = L.Trainer(
        callbacks=list(callbacks), logger=logger, default_root_dir=folder, **{**defaults, **quiet, **settings}
    )
    trainer.fit(DummyStage(Clock()), data or DummyData(Clock()))
    return logger


# -- metrics.jsonl ---------------------------------------------------------------------------------------------------------


def test_a_line_torn_by_a_kill_spoils_no_other(tmp_path: Path):
    logger = JsonlLogger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, 1)
    with open(logger.path, "ab") as file:
        file.write(b'{"step": 2, "ti')
    logger.log_metrics({"a": 3.0}, 3)
    assert read_metrics(tmp_path) == {"a": {1: 1.0, 3: 3.0}}


def test_of_a_step_logged_twice_the_later_counts(tmp_path: Path):
    for value in (1.0, 2.0):
        JsonlLogger(str(tmp_path)).log_metrics({"a": value}, 1)
    assert read_metrics(tmp_path) == {"a": {1: 2.0}}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_stays_one_and_the_line_stays_json(value: str, tmp_path: Path):
    logger = JsonlLogger(str(tmp_path))
    logger.log_metrics({"a": float(value)}, 1)
    line = json.loads(logger.path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["a"] == value
    assert str(read_metrics(tmp_path)["a"][1]) == value


# -- checkpoints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["torch.save", "os.fsync", "os.replace"])
def test_a_save_that_fails_anywhere_leaves_the_old_checkpoint_and_no_litter(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "step-00000001.ckpt"
    CheckpointIO().save_checkpoint({"step": 1}, path)

    def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(broken, fails)
    with pytest.raises(OSError, match="disk full"):
        CheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == [path.name]


# -- throughput ------------------------------------------------------------------------------------------------------------


class SlowData(DummyData):
    """Waits before every batch."""

    def train_dataloader(self) -> Stream:
        return SlowStream(self.num_batches)


class SlowStream(Stream):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.05)
            yield batch


def test_speed_padding_and_hours_are_those_of_the_batches(tmp_path: Path):
    started = time.perf_counter()
    train(tmp_path, Throughput(every=2))
    elapsed = time.perf_counter() - started
    seen = read_metrics(tmp_path)
    # between two logs Lightning repeats the last values
    assert seen["perf/padding_share"] == dict.fromkeys(
        (1, 2, 3), pytest.approx(0.25)
    )  # 3200 and 1600 of 2 x 3200 samples
    hours = [pytest.approx(batches * 0.3 / 3600) for batches in (2, 2, 4)]
    assert list(seen["data/hours"].values()) == hours
    for speed, seconds in zip(seen["perf/hours_per_hour"].values(), seen["perf/step_sec"].values(), strict=True):
        assert speed * seconds == pytest.approx(0.3, rel=1e-3)
        assert seconds < elapsed


def test_waiting_for_data_is_seen(tmp_path: Path):
    train(tmp_path, Throughput(every=2), data=SlowData(Clock()))
    assert read_metrics(tmp_path)["perf/data_wait"][3] > 0.5


def test_a_step_of_several_batches_is_timed_as_one(tmp_path: Path):
    train(tmp_path, Throughput(every=1), accumulate_grad_batches=2, data=SlowData(Clock()))
    seen = read_metrics(tmp_path)
    assert min(seen["perf/step_sec"].values()) > 0.09
    assert len(seen["perf/step_sec"]) == 4


# -- the rest --------------------------------------------------------------------------------------------------------------


def test_skipped_recordings_are_logged_by_reason(tmp_path: Path):
    data = DummyData(Clock())
    data.skipped = Counter({"too long": 3, "unreadable": 1})
    train(tmp_path, SkipCounts(every=1), data=data)
    seen = read_metrics(tmp_path)
    assert set(seen["data/skipped/too_long"].values()) == {3.0}
    assert set(seen["data/skipped/unreadable"].values()) == {1.0}


def test_the_codebook_is_drawn_after_every_validation(tmp_path: Path):
    train(tmp_path, CodebookPicture(), limit_val_batches=1, val_check_interval=2)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["codebook-00000002.png", "codebook-00000004.png"]


def test_callbacks_change_no_weight(tmp_path: Path):
    ends = []
    for callbacks in ([], [Throughput(every=1), SkipCounts(every=1), CodebookPicture(), PlainProgress()]):
        torch.manual_seed(0)
        stage = DummyStage(Clock())
        settings = {"max_steps": 4, "accelerator": "cpu", "enable_model_summary": False, "enable_checkpointing": False}
        logger = JsonlLogger(str(tmp_path))
        bar = {} if callbacks else {"enable_progress_bar": False}
        trainer = L.Trainer(callbacks=callbacks, logger=logger, default_root_dir=tmp_path, **settings, **bar)
        trainer.fit(stage, DummyData(Clock(), num_batches=8))
        ends.append(stage.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_progress_without_a_terminal_is_lines_with_the_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train(tmp_path, PlainProgress(), enable_progress_bar=True, limit_val_batches=1, val_check_interval=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "2/4", "3/4", "4/4", "4/4"]
    assert "train/loss" in lines[1] and "val/dummy/loss" in lines[2]
    assert lines[-1].endswith("eta 0:00:00")


# -- W&B -------------------------------------------------------------------------------------------------------------------


def test_w_and_b_that_fails_is_left_out_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such server")

    monkeypatch.setattr("wandb.init", fails)
    logger = {"class_path": "callbacks.wandb_log.WandbLog"}
    with pytest.warns(UserWarning, match="left out from here"):
        folder = run(write_config(tmp_path, trainer={**CONFIG["trainer"], "logger": logger}))
    assert (folder / "checkpoints/step-00000004.ckpt").exists()
    assert len(read_metrics(folder)["train/loss"]) == 4


def test_w_and_b_that_can_not_be_reached_is_kept_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    modes = []

    def init(mode: str | None = None, **_: object) -> SimpleNamespace:
        modes.append(mode)
        if mode != "offline":
            raise TimeoutError("no answer")
        return SimpleNamespace(log=lambda metrics: None)

    monkeypatch.setattr("wandb.init", init)
    logger = WandbLog(str(tmp_path))
    with pytest.warns(UserWarning, match="logged offline"):
        logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"a": 2.0}, 2)
    assert modes == [None, "offline"]


def test_restarts_of_a_run_are_one_run_in_w_and_b(tmp_path: Path):
    assert WandbLog(str(tmp_path))._run_id() == WandbLog(str(tmp_path))._run_id()
    assert WandbLog(str(tmp_path))._run_id() != WandbLog(str(tmp_path / "other"))._run_id()


def test_two_runs_of_a_process_are_two_in_w_and_b(tmp_path: Path):
    offline = {"class_path": "callbacks.wandb_log.WandbLog", "init_args": {"offline": True}}
    config = write_config(tmp_path, trainer={**CONFIG["trainer"], "logger": offline})
    for name in ("one", "two"):
        run(config, "--name", name)
        assert len(list((tmp_path / "runs" / name).glob("wandb/offline-run-*/*.wandb"))) == 1


def test_tensorboard_can_log_into_the_run_folder(tmp_path: Path):
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "${runs_dir}/${name}", "name": "tensorboard"},
    }
    folder = run(write_config(tmp_path, trainer={**CONFIG["trainer"], "logger": logger}))
    assert list(folder.glob("tensorboard/**/events.out.*"))
    written = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]["init_args"]["save_dir"]
    assert written == str(folder)
