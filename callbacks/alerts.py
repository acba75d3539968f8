"""Says when a run goes wrong: in the log, in the run folder, and to W&B, which sends it on to people."""

import json
import logging
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.wandb_log import WandbLog
from speechlm.provenance import redact

log = logging.getLogger(__name__)
LOSS, USAGE = "train/loss", "codebook/usage"


class Alerts(L.Callback):
    """Watches what is logged, and the clock. Every message names the numbers; the same kind comes again after `quiet_sec` at the
    earliest. Written to `alerts.jsonl` of the run folder and to the log, and sent through W&B where it logs.

    | kind | when |
    |---|---|
    | `nan` | a metric under `train/` is not finite, or updates were left out because of that |
    | `spike` | the loss is `spike_deviations` robust deviations above the median of its last `window` finite values |
    | `stall` | no step ended for `stall_sec`, or for 20 usual steps where that is longer |
    | `dead_codes` | less than half of the codes that were in use at best are, or less than `min_usage` after `usage_from_step` |
    | `text_loss` | the loss on a validation set of text is `text_margin` (a share) above the lowest it was |
    | `crash` | training ended with an error |

    Nothing is computed on the device: it sees numbers that were fetched for the log anyway.

    Args:
        spike_deviations: how far above; 8 is once in a run, not once in a day.
        window: values of the loss that are compared with.
        stall_sec: without a step; validation counts as work as long as it lasts, and has no limit.
        min_usage: share of the codes that must be in use.
        usage_from_step: since when.
        text_sets: validation sets of text, whose `val/<set>/loss_text`, or else `val/<set>/loss`, is watched.
        text_margin: how much it may rise above its lowest, as a share of it.
        quiet_sec: between two alerts of a kind.
    """

    def __init__(
        self,
        spike_deviations: float = 8.0,
        window: int = 200,
        stall_sec: float = 900.0,
        min_usage: float = 0.05,
        usage_from_step: int = 2000,
        text_sets: tuple[str, ...] = ("text",),
        text_margin: float = 0.03,
        quiet_sec: float = 3600.0,
    ) -> None:
        if window < 20 or spike_deviations <= 0 or stall_sec <= 0 or text_margin <= 0:
            raise ValueError(
                f"alerts need window >= 20 and spike_deviations, stall_sec and text_margin above 0, got {window}, "
                f"{spike_deviations}, {stall_sec} and {text_margin}"
            )
        self.spike_deviations, self.stall_sec, self.quiet_sec = spike_deviations, stall_sec, quiet_sec
        self.min_usage, self.usage_from_step = min_usage, usage_from_step
        self.text_sets, self.text_margin = tuple(text_sets), text_margin
        self._losses: deque[float] = deque(maxlen=window)
        self._left_out, self._most_used = 0.0, 0.0
        self._lowest_text: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._loggers: list[Logger] = []
        self._folder = Path()
        self._watch: StallWatch | None = None

    # -- what is remembered over restarts --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self._losses),
            "left_out": self._left_out,
            "most_used": self._most_used,
            "lowest_text": dict(self._lowest_text),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses.extend(state_dict["losses"])
        self._left_out, self._most_used = state_dict["left_out"], state_dict["most_used"]
        self._lowest_text = dict(state_dict["lowest_text"])

    # -- hooks -----------------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen to what the loggers get, on the first rank."""
        if not trainer.is_global_zero or any(isinstance(logger, _Feed) for logger in trainer.loggers):
            return
        self._folder, self._loggers = Path(trainer.default_root_dir), list(trainer.loggers)
        trainer.loggers.append(_Feed(self))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        if trainer.is_global_zero:
            self._watch = StallWatch(self.stall_sec, self._stalled)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """A sign of life."""
        if self._watch:
            self._watch.step(trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation may take as long as it takes."""
        if self._watch:
            self._watch.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """On from here."""
        if self._watch:
            self._watch.go_on()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """An error ends the run; being asked to stop is none."""
        if isinstance(exception, Exception) and trainer.is_global_zero:
            self.say("crash", trainer.global_step, f"{type(exception).__name__}: {redact(str(exception))[:1000]}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop the clock."""
        if self._watch:
            self._watch.stop()
            self._watch = None

    # -- rules -----------------------------------------------------------------------------------------------------------------

    def see(self, metrics: dict[str, float], step: int) -> None:
        """Look at numbers that are being logged."""
        for kind, text in self._wrong(metrics, step):
            self.say(kind, step, text)

    def say(self, kind: str, step: int, text: str) -> None:
        """Tell it everywhere, unless that was done a while ago."""
        now = time.monotonic()
        if now - self._said.get(kind, -math.inf) < self.quiet_sec:
            return
        self._said[kind] = now
        log.warning("step %d, %s: %s", step, kind, text)
        line = {"step": step, "time": round(time.time(), 3), "kind": kind, "text": text}
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "alerts.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for logger in self._loggers:
            if isinstance(logger, WandbLog):
                logger.alert(f"{kind} at step {step}", text)

    def _wrong(self, metrics: dict[str, float], step: int) -> Iterator[tuple[str, str]]:
        yield from self._not_finite(metrics)
        loss = metrics.get(LOSS)
        if loss is not None and math.isfinite(loss):
            yield from self._spiked(loss)
        if USAGE in metrics:
            yield from self._died(metrics[USAGE], step)
        for name in self.text_sets:
            value = metrics.get(f"val/{name}/loss_text", metrics.get(f"val/{name}/loss"))
            if value is not None and math.isfinite(value):
                yield from self._forgot(name, value)

    def _not_finite(self, metrics: dict[str, float]) -> Iterator[tuple[str, str]]:
        bad = [
            f"{name} = {value}"
            for name, value in metrics.items()
            if name.startswith("train/") and not math.isfinite(value)
        ]
        if bad:
            yield "nan", f"{', '.join(bad)}; the last good checkpoint is in the run folder"
        left_out = metrics.get("train/skipped_updates", self._left_out)
        if left_out > self._left_out:
            yield (
                "nan",
                f"{left_out:.0f} updates were left out so far, {left_out - self._left_out:.0f} of them since the last log",
            )
        self._left_out = left_out

    def _spiked(self, loss: float) -> Iterator[tuple[str, str]]:
        if len(self._losses) >= 20:
            middle = statistics.median(self._losses)
            deviation = 1.4826 * statistics.median(abs(value - middle) for value in self._losses)
            limit = middle + self.spike_deviations * max(deviation, 1e-3 * abs(middle))
            if loss > limit:
                yield (
                    "spike",
                    f"{LOSS} {loss:.4g}; the median of the last {len(self._losses)} is {middle:.4g}, the limit {limit:.4g}",
                )
        self._losses.append(loss)

    def _died(self, usage: float, step: int) -> Iterator[tuple[str, str]]:
        self._most_used = max(self._most_used, usage)
        if usage < 0.5 * self._most_used:
            yield "dead_codes", f"{usage:.1%} of the codes are in use, {self._most_used:.1%} were"
        elif step >= self.usage_from_step and usage < self.min_usage:
            yield (
                "dead_codes",
                f"{usage:.1%} of the codes are in use after {step} steps, expected {self.min_usage:.1%} at least",
            )

    def _forgot(self, name: str, loss: float) -> Iterator[tuple[str, str]]:
        lowest = self._lowest_text.setdefault(name, loss)
        if loss > lowest * (1.0 + self.text_margin):
            yield (
                "text_loss",
                (
                    f"the loss on {name} is {loss:.4g}, {loss / lowest - 1.0:.1%} above the lowest, {lowest:.4g}: text is being "
                    f"forgotten; more of it in the mixture, or a lower learning rate"
                ),
            )
        self._lowest_text[name] = min(lowest, loss)

    def _stalled(self, step: int, seconds: float, usual: float) -> None:
        text = f"no step has ended for {seconds:.0f} s; one takes {usual:.2g} s. A rank, the data or the network hangs"
        self.say("stall", step, text)


class StallWatch:
    """A side thread that calls once for every time in which no step ends.

    Args:
        limit_sec: at least so long.
        stalled: is given the step, the seconds it has waited, and those a step usually takes.
    """

    def __init__(self, limit_sec: float, stalled: Any) -> None:
        self.limit_sec, self.stalled = limit_sec, stalled
        self._at, self._last, self._said = 0, time.monotonic(), False
        self._durations: deque[float] = deque(maxlen=50)
        self._paused, self._ended = False, threading.Event()
        threading.Thread(target=self._run, name="stall-watch", daemon=True).start()

    def step(self, number: int) -> None:
        """A step has ended."""
        now = time.monotonic()
        self._durations.append(now - self._last)
        self._at, self._last, self._said = number, now, False

    def pause(self) -> None:
        """What comes now is no step."""
        self._paused = True

    def go_on(self) -> None:
        """Steps again."""
        self._paused, self._last = False, time.monotonic()

    def stop(self) -> None:
        """No more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(min(10.0, self.limit_sec / 4)):
            usual = statistics.median(list(self._durations) or [0.0])
            waited = time.monotonic() - self._last
            if not self._paused and not self._said and waited > max(self.limit_sec, 20 * usual):
                self._said = True
                self.stalled(self._at, waited, usual)


class _Feed(Logger):
    """Hands to `Alerts` what all loggers are given, when they are."""

    def __init__(self, alerts: Alerts) -> None:
        super().__init__()
        self.alerts = alerts

    @property
    def name(self) -> None:
        """None: it writes nothing."""
        return

    @property
    def version(self) -> None:
        """None, as above."""
        return

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Look at them."""
        self.alerts.see({name: float(value) for name, value in metrics.items()}, step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Not of interest."""
