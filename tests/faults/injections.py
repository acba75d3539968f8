"""Faults as callbacks, so that a config can name them: each strikes one rank at one step."""

import ctypes
import errno
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks import checkpoint
from speechlm.tokens.clock import Clock
from tests.dummies import DummyData, Stream


class Fault(L.Callback):
    """Strikes at given steps.

    Args:
        steps: optimizer steps, counted from 0.
        rank: which rank; None is every one.
    """

    def __init__(self, steps: list[int], rank: int | None = None) -> None:
        self.steps, self.rank = set(steps), rank

    def strikes(self, trainer: L.Trainer) -> bool:
        """Whether it is time, here."""
        return trainer.global_step in self.steps and self.rank in (None, trainer.global_rank)


class BadGradient(Fault):
    """Gradients of this value, as a backward pass would leave them on this rank, before ranks are averaged."""

    def __init__(self, steps: list[int], rank: int | None = None, value: float = float("nan")) -> None:
        super().__init__(steps, rank)
        self.value = value

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self.strikes(trainer) and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * self.value)


class BadLoss(Fault):
    """Audio whose loss is what the value makes of it."""

    def __init__(self, steps: list[int], rank: int | None = None, value: float = float("nan")) -> None:
        super().__init__(steps, rank)
        self.value = value

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.strikes(trainer):
            batch.audio.mul_(self.value)


class PoisonedModel(Fault):
    """A language model whose loss is NaN for a micro-batch."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        model: Any = pl_module.model
        model.z_loss = float("nan") if self.strikes(trainer) else 0.0


class FlippedBit(Fault):
    """One bit of one weight, changed behind a step."""

    def __init__(self, steps: list[int], rank: int | None = None, bit: int = 3, parameter: int = 0) -> None:
        super().__init__(steps, rank)
        self.bit, self.parameter = bit, parameter

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.strikes(trainer):
            weight = list(pl_module.parameters())[self.parameter].data.view(-1)
            weight[:1].view(torch.int32).bitwise_xor_(1 << self.bit)


class WrongLayer(Fault):
    """A layer that computes wrongly once: the first time it is asked at that step."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.strikes(trainer):
            return

        def once(module: Any, args: Any, output: Tensor) -> Tensor:
            handle.remove()
            wrong = output.clone()
            wrong.view(-1)[0] += 1e-3
            return wrong

        handle = pl_module.net[0].register_forward_hook(once)


class Slow(L.Callback):
    """One rank that takes longer in every forward pass."""

    def __init__(self, rank: int, seconds: float) -> None:
        self.rank, self.seconds = rank, seconds

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank:
            time.sleep(self.seconds)


class SlowData(DummyData):
    """One rank that takes longer to get every batch."""

    def __init__(self, clock: Clock, rank: int, seconds: float) -> None:
        super().__init__(clock)
        self.rank, self.seconds = rank, seconds

    def train_dataloader(self) -> Stream:
        assert self.trainer is not None
        slow = self.trainer.global_rank == self.rank
        return _SlowStream(self.num_batches, self.seconds) if slow else super().train_dataloader()


class _SlowStream(Stream):
    def __init__(self, num_batches: int, seconds: float) -> None:
        super().__init__(num_batches)
        self.seconds = seconds

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            time.sleep(self.seconds)
            yield batch


class Strike(Fault):
    """What ends or stops a process in a batch: a signal to itself, an error, or a call that never lets go.

    Args:
        steps: see `Fault`.
        rank: see `Fault`.
        kind: what happens.
        seconds: how long it lasts.
        where: "forward", "backward" or "optimizer".
    """

    def __init__(
        self,
        steps: list[int],
        rank: int | None = None,
        kind: str = "SIGKILL",
        seconds: float = 60.0,
        where: str = "backward",
    ) -> None:
        super().__init__(steps, rank)
        self.kind, self.seconds, self.where = kind, seconds, where

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._strike(trainer, "forward")

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._strike(trainer, "backward")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._strike(trainer, "optimizer")

    def _strike(self, trainer: L.Trainer, where: str) -> None:
        if where != self.where or not self.strikes(trainer):
            return
        if self.kind.startswith("SIG"):
            for number, name in enumerate(self.kind.split()):
                time.sleep(self.seconds if number else 0)
                os.kill(os.getpid(), getattr(signal, name))
        elif self.kind == "error":
            raise ValueError("a deliberate error")
        elif self.kind == "abort":
            os.abort()
        elif self.kind == "sleep":
            time.sleep(self.seconds)
        elif self.kind == "hold lock":
            ctypes.PyDLL(None).sleep(int(self.seconds))  # PyDLL keeps the interpreter's lock
        elif self.kind == "segfault":
            ctypes.string_at(0)
        else:
            raise AssertionError(self.kind)


class FailingDisk(L.Callback):
    """Some of a run's saves fail as a disk would fail.

    Args:
        saves: which of them, from 0.
        error: name of the error, such as ENOSPC.
    """

    def __init__(self, saves: list[int], error: str = "ENOSPC") -> None:
        self.saves, self.error, self.count = saves, getattr(errno, error), 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        write = checkpoint.write_part

        def fails(*args: Any, **kwargs: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number in self.saves:
                raise OSError(self.error, os.strerror(self.error))
            return write(*args, **kwargs)

        checkpoint.write_part = fails
