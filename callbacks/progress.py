"""Progress on a terminal as a bar, elsewhere as one line at a time; both say when the run will be done."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT

from callbacks.eta import eta


class RunClock:
    """Estimates the time to the end of a run from the steps done since it started or resumed."""

    def __init__(self) -> None:
        self._first_step, self._start = 0, time.monotonic()

    def restart(self, trainer: L.Trainer) -> None:
        """Count from here."""
        self._first_step, self._start = trainer.global_step, time.monotonic()

    def eta(self, trainer: L.Trainer) -> str:
        """Time left, "?" where nobody knows how many steps there are."""
        total = total_steps(trainer)
        if total is None:
            return "?"
        done = trainer.global_step - self._first_step
        return eta(time.monotonic() - self._start, done, total - trainer.global_step)


def total_steps(trainer: L.Trainer) -> int | None:
    """Optimizer steps of the whole run, or None where the data's length is unknown and no `max_steps` is set."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs is None or epochs < 0 or batches == float("inf"):
        return None
    return -(-int(batches) // trainer.accumulate_grad_batches) * epochs


class TerminalProgress(RichProgressBar):
    """Lightning's rich bar with the time to the end of the run, not of the epoch alone."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        self.clock = RunClock()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.clock.restart(trainer)
        super().on_train_start(trainer, pl_module)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What the bar shows behind it."""
        shown: dict[str, Any] = {**super().get_metrics(trainer, pl_module)}
        shown.pop("v_num", None)
        return {**shown, "eta": self.clock.eta(trainer)}


class PlainProgress(ProgressBar):
    """A line every `log_every_n_steps` steps, for log files and schedulers."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = RunClock()
        self._enabled, self._shown_step = True, -1

    def disable(self) -> None:
        """Ranks other than the first stay quiet."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.clock.restart(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """A line of training."""
        every = max(1, getattr(trainer, "log_every_n_steps", 1))  # set by a connector, unknown to type checkers
        due = trainer.global_step % every == 0 or trainer.global_step == trainer.max_steps
        if due and trainer.global_step != self._shown_step:
            self._shown_step = trainer.global_step
            shown = self.get_metrics(trainer, pl_module).items()
            self._print(trainer, {name: value for name, value in shown if name.startswith(("train/", "perf/"))})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A line of validation."""
        if not trainer.sanity_checking:
            known = trainer.callback_metrics.items()
            self._print(trainer, {name: float(value) for name, value in known if name.startswith("val/")})

    def _print(self, trainer: L.Trainer, metrics: Mapping[str, Any]) -> None:
        if not self._enabled:
            return
        shown = [f"{name} {_short(value)}" for name, value in metrics.items()]
        total = total_steps(trainer)
        head = f"step {trainer.global_step}" + (f"/{total}" if total else "")
        print("  ".join([head, *shown, f"eta {self.clock.eta(trainer)}"]), file=sys.stdout, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
