"""What guards of updates have in common: the size of a step, measured once on all ranks, and how an update is left out."""

import logging
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from speechlm.updates import Updates, updates_of

log = logging.getLogger(__name__)
_MEASURE = "_step_measure"


@dataclass
class StepSize:
    """Of one update, all micro-batches and ranks together; the same on every rank."""

    loss: float  # mean
    grad_norm: float  # before clipping
    finite: bool  # every loss and the norm, on every rank


class UpdateGuard(L.Callback):
    """Looks at every update before it is made, and says which are not to be.

    Whoever inherits from this names a `kind` and says in `objection` what is wrong with an update. Several guards share one
    measurement: one norm and one reduction of three numbers a step.
    """

    kind = ""

    def __init__(self) -> None:
        self.left_out = 0

    def objection(self, size: StepSize) -> str:
        """Why this update is not to be made, or ""; called once per update, with the same size on every rank."""
        raise NotImplementedError

    def accepted(self, size: StepSize) -> None:
        """The update is made."""

    def state_dict(self) -> dict[str, Any]:
        return {"left_out": self.left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.left_out = state_dict["left_out"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.automatic_optimization:  # its updates begin and end within a batch
            pl_module.__dict__.pop(_MEASURE, None)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        _measure_of(pl_module).add(self, loss)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        size = _measure_of(pl_module).size(optimizer)
        updates, step = updates_of(pl_module), trainer.global_step
        if size is None or updates.left_out_at(step):
            return
        reason = self.objection(size)
        if reason:
            self._leave_out(updates, step, reason, optimizer)
        else:
            self.accepted(size)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _measure_of(pl_module).taken:
            pl_module.__dict__.pop(_MEASURE)
        pl_module.log(f"guard/{self.kind}", float(self.left_out), rank_zero_only=True)

    def _leave_out(self, updates: Updates, step: int, reason: str, optimizer: Optimizer) -> None:
        updates.leave_out(step, self.kind, reason)
        self.left_out += 1
        for parameter in _parameters(optimizer):
            parameter.grad = None
        log.warning("the update of step %d was left out on all ranks: %s", step, reason)


class _Measure:
    """Gathers what one update is made of; hangs on the module, where all guards find it."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.owner: UpdateGuard | None = None
        self.taken = False
        self._size: StepSize | None = None

    def add(self, guard: UpdateGuard, loss: Tensor) -> None:
        self.owner = self.owner or guard
        if guard is self.owner:
            self.losses.append(loss.detach().float())

    def size(self, optimizer: Optimizer) -> StepSize | None:
        """None where there are no gradients, and so nothing to guard."""
        if not self.taken:
            self.taken = True
            self._size = self._take([p.grad for p in _parameters(optimizer) if p.grad is not None])
        return self._size

    def _take(self, gradients: list[Tensor]) -> StepSize | None:
        if not gradients:
            return None
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        loss = torch.stack(self.losses).sum() if self.losses else torch.zeros((), device=norm.device)
        ok = norm.isfinite() & loss.isfinite()
        numbers = torch.stack([(~ok).float(), loss.nan_to_num(0.0, 0.0, 0.0), norm.float()])
        world = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(numbers)
            world = dist.get_world_size()
        bad, total, norms = numbers.tolist()  # the one wait for the device
        return StepSize(total / world, norms / world, bad == 0)


def _measure_of(pl_module: L.LightningModule) -> _Measure:
    return pl_module.__dict__.setdefault(_MEASURE, _Measure())


def _parameters(optimizer: Any) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
