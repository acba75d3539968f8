"""Metrics as JSON lines: the log that every run has, whatever else is installed or reachable."""

import json
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

METRICS = "metrics.jsonl"  # of a run folder


class JsonlLogger(Logger):
    """Appends one line per logging call to `<folder>/metrics.jsonl`: `{"step": 10, "time": 1732170000.0, "train/loss": 2.5}`.

    A resumed run appends, so the steps between its checkpoint and the end of the run before it may occur twice; the later
    line counts, and `read_metrics` keeps that one. Numbers that are not finite are written as the strings "nan", "inf" and
    "-inf", because JSON has no other way to keep them apart from a value that is missing.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """Empty: a run folder is one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Where Lightning puts what has no other place."""
        return str(self.path.parent)

    log_dir = save_dir

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line, whole even if the process is killed next."""
        line = {"step": step, "time": round(time.time(), 3), **{name: _plain(value) for name, value in metrics.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            torn = file.tell() > 0 and not _ends_with_newline(self.path)
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to write: config.yaml has them."""


def read_metrics(folder: str | Path) -> dict[str, dict[int, float]]:
    """Metrics of a run folder: `{"train/loss": {10: 2.5, 20: 2.1}}`; of a step logged twice, the later value.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
    """
    series: dict[str, dict[int, float]] = {}
    for text in (Path(folder) / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            step = line.pop("step")
            numbers = {name: float(value) for name, value in line.items() if name != "time"}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # torn by a kill, or damaged
            continue
        for name, value in numbers.items():
            series.setdefault(name, {})[step] = value
    return series


def _plain(value: Any) -> float | int | str:
    number = value.item() if hasattr(value, "item") else value
    return number if not isinstance(number, float) or math.isfinite(number) else str(number)


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
