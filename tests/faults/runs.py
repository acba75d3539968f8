"""Runs of the dummy stage by one or two ranks, with faults and guards, for the tests of processes."""

from pathlib import Path
from typing import Any

import torch
import yaml

from callbacks.jsonl import read_metrics
from speechlm import runs
from speechlm.checkpoint.read import read_tensors
from speechlm.checkpoint.state import WEIGHTS
from tests.fit_runs import CONFIG

Named = tuple[str, dict[str, Any]]


def write_run(
    folder: Path, *callbacks: Named, ranks: int = 2, steps: int = 8, dropout: float = 0.0, **trainer: Any
) -> Path:
    """The config of a run; callbacks by class path and arguments."""
    listed = [{"class_path": name, "init_args": arguments} for name, arguments in callbacks]
    settings = {
        **CONFIG["trainer"],
        "max_steps": steps,
        "callbacks": listed,
        "devices": ranks,
        **({"strategy": "ddp"} if ranks > 1 else {}),
        **trainer,
    }
    folder.mkdir(parents=True, exist_ok=True)
    model = {**CONFIG["model"], "init_args": {**CONFIG["model"]["init_args"], "dropout": dropout}}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "runs_dir": str(folder / "runs"), "model": model, "trainer": settings}))
    return path


def arguments(config: Path, *more: str) -> dict[str, Any]:
    """Of the job `fit`."""
    return {"args": ["--config", str(config), *more]}


def losses(folder: Path) -> dict[int, float]:
    """Of every step of the run, by step."""
    return read_metrics(folder / "runs" / "dummy")["train/loss"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """At the end of the run."""
    newest = runs.newest_checkpoint(folder / "runs" / "dummy")
    assert newest is not None
    return read_tensors(newest.path, f"{WEIGHTS}.")


def fault(name: str, *steps: int, **settings: Any) -> Named:
    """A fault of `tests.faults.injections`, as a config names it."""
    return f"tests.faults.injections.{name}", {"steps": list(steps), **settings}
