"""What an offline run of W&B holds, read back from its log: two starts under one id, tables with their sounds, plots, code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
from matplotlib import image

from tests.fit_runs import CONFIG, run, write_config


def records(folder: Path) -> list[dict[str, Any]]:
    """Of one start."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was started twice."""
    callbacks = [{"class_path": f"callbacks.{name}"} for name in ("token_table.TokenTable", "codebook.CodebookPicture")]
    logger = {"class_path": "callbacks.wandb_log.WandbLog", "init_args": {"offline": True}}
    trainer = {
        **CONFIG["trainer"],
        "callbacks": callbacks,
        "logger": logger,
        "limit_val_batches": 1,
        "val_check_interval": 2,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_DATA_DIR", raising=False)
        config = write_config(tmp_path_factory.mktemp("wandb"), trainer=trainer)
        run(config, "--trainer.max_steps", "2")
        return run(config)


@pytest.fixture(scope="module")
def starts(folder: Path) -> list[list[dict[str, Any]]]:
    return [records(path) for path in sorted(folder.glob("wandb/offline-run-*"))]


def test_two_starts_are_one_run(folder: Path, starts: list[list[dict[str, Any]]]):
    ids = [one["run"]["run_id"] for start in starts for one in start if one["type"] == "run"]
    assert ids == [(folder / "wandb/run_id").read_text()] * 2


def test_the_log_has_every_metric_at_its_step(starts: list[list[dict[str, Any]]]):
    seen = {}
    for one in (one for start in starts for one in start if one["type"] == "history"):
        items = one["history"]["item"]
        values = (
            {item.get("key") or "/".join(item["nested_key"]): item["value_json"] for item in items}
            if isinstance(items, list)
            else items
        )
        if "train/loss" in values:
            seen[int(float(values["trainer/global_step"]))] = values["train/loss"]
    assert sorted(seen) == [0, 1, 2, 3]


def test_config_origin_and_code_are_there(folder: Path, starts: list[list[dict[str, Any]]]):
    text = json.dumps([one for one in starts[0] if one["type"] in ("config", "run")])
    assert "origin" in text and "tests.dummies.DummyStage" in text
    for path in folder.glob("wandb/offline-run-*/files"):
        assert {"config.yaml", "env.json", "code.diff"} <= {file.name for file in path.iterdir()}


def test_sounds_and_pictures_lie_in_the_run_folder_and_can_be_opened(folder: Path):
    sounds = sorted(folder.glob("wandb/offline-run-*/files/media/audio/**/*.flac"))
    pictures = sorted(folder.glob("wandb/offline-run-*/files/media/images/**/*.png"))
    assert {path.relative_to(folder).parts[5:7] for path in sounds} == {("tokens", "dummy")}
    assert all(len(soundfile.read(path)[0]) in (1600, 3200) for path in sounds)
    assert any("rank_frequency" in path.name for path in pictures) and any("tokens" in str(path) for path in pictures)
    assert all(image.imread(path).shape[0] > 50 for path in pictures)


def test_the_table_and_what_its_cells_hold_are_kept_for_the_sync(folder: Path, starts: list[list[dict[str, Any]]]):
    (table,) = {path.parent.name for path in folder.glob("wandb/offline-run-*/files/media/table/tokens/*.json")}
    assert table == "tokens"
    artifacts = [one["artifact"] for start in starts for one in start if one["type"] == "artifact"]
    assert len(artifacts) == 2
    for artifact in artifacts:
        held = artifact["manifest"]["contents"]
        assert sum(file["path"].endswith(".flac") for file in held) == 2
        assert all(
            Path(file["local_path"]).is_relative_to(folder) and Path(file["local_path"]).is_file() for file in held
        )
