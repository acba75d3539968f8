"""Runs of the dummy stage through the command line of `speechlm.fit`, in this process."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from speechlm import fit

CONFIG: dict[str, Any] = {
    "name": "dummy",
    "clock": {"sample_rate_hz": 16_000, "token_rate_hz": 12.5},
    "model": {"class_path": "tests.dummies.DummyStage", "init_args": {"width": 4}},
    "data": {"class_path": "tests.dummies.DummyData"},
    "trainer": {
        "max_steps": 4,
        "accelerator": "cpu",
        "devices": 1,
        "log_every_n_steps": 1,
        "limit_val_batches": 0,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    },
    "checkpoint": {"every_n_steps": 2},
}


def write_config(folder: Path, **changes: Any) -> Path:
    """The dummy run's config under `folder`, with top-level sections replaced."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "runs_dir": str(folder / "runs"), **changes}), encoding="utf-8")
    return path


def run(config: Path, *arguments: str) -> Path:
    """Train as the command line would; the run folder."""
    fit.main(["--config", str(config), *arguments])
    return config.parent / "runs" / "dummy"


def refusal(capsys: pytest.CaptureFixture[str], config: Path | str, *arguments: str) -> str:
    """What a command that must be refused says; its exit code must be 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        fit.main(["--config", str(config), *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err
