"""What a run starts from is measured before its first step, once."""

from pathlib import Path

import pytest
import torch

from callbacks.jsonl import read_metrics
from tests.fit_runs import CONFIG, run, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    trainer = {
        **CONFIG["trainer"],
        "limit_val_batches": 1,
        "val_check_interval": 2,
        "callbacks": [{"class_path": "callbacks.validate_first.ValidateFirst"}],
    }
    return write_config(tmp_path, trainer=trainer)


def test_the_start_is_validated_as_step_0_and_a_resumed_run_does_not_do_it_again(config: Path):
    folder = run(config, "--trainer.max_steps", "2")
    names = [name for name in read_metrics(folder) if name.startswith("val/")]
    assert names
    first = {name: read_metrics(folder)[name][0] for name in names}
    run(config, "--trainer.max_steps", "4")
    for name in names:
        assert sorted(read_metrics(folder)[name]) == [0, 1, 3]
        assert read_metrics(folder)[name][0] == first[name]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert lines.count(f'"{names[0]}"') == 3


def test_it_changes_nothing_of_what_is_learnt(config: Path, tmp_path: Path):
    with_it = run(config)
    (tmp_path / "plain").mkdir()
    trainer = {**CONFIG["trainer"], "limit_val_batches": 1, "val_check_interval": 2}
    without = run(write_config(tmp_path / "plain", trainer=trainer))
    losses = [read_metrics(folder)["train/loss"] for folder in (with_it, without)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert torch.isfinite(torch.tensor(list(losses[0].values()))).all()
