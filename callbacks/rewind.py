"""When updates go wrong again and again: back to the last good state, and on with the data behind the stretch that did it."""

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from speechlm.nn.ema import local
from speechlm.updates import updates_of

log = logging.getLogger(__name__)


class Rewind(L.Callback):
    """Rewinds a run whose updates are left out several times in a row.

    Weights, averages, codebooks and the optimizer's moments become what they were at a snapshot from before the first of them,
    kept in memory by every rank for its own part. The count of steps goes on, so the data between the snapshot and now is
    passed over, and where the data stands stays a function of the step, whoever resumes. Guards (`FiniteGuard`, `SpikeGuard`)
    say which updates are left out; a stage that counts them itself is told by its `on_rewind`.

    Source: PaLM (arXiv 2204.02311, 5.1) went back about 100 steps and passed over 200 to 500 batches.

    Args:
        after: updates in a row that are left out.
        every: steps between snapshots; what is kept is the size of the weights and moments of a rank, twice.
        margin: a snapshot is good if so many steps lie between it and the first update left out.
        max_rewinds: within `window` steps; one more ends the run.
        window: see `max_rewinds`.

    Raises:
        ValueError: a number that never acts.
        RuntimeError: rewinding did not help.
    """

    def __init__(
        self, after: int = 5, every: int = 100, margin: int = 10, max_rewinds: int = 3, window: int = 10_000
    ) -> None:
        if min(after, every, max_rewinds, window) < 1 or margin < 0:
            raise ValueError(
                f"after, every, max_rewinds and window must be at least 1 and margin 0, got {after}, {every}, "
                f"{max_rewinds}, {window} and {margin}"
            )
        self.after, self.every, self.margin = after, every, margin
        self.max_rewinds, self.window = max_rewinds, window
        self.rewound_at: list[int] = []
        self._kept: deque[Snapshot] = deque(maxlen=2)

    def state_dict(self) -> dict[str, Any]:
        return {"rewound_at": self.rewound_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rewound_at = list(state_dict["rewound_at"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """There is always a state to go back to."""
        self._kept.clear()
        self._keep(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, streak = trainer.global_step, updates_of(pl_module).streak(trainer.global_step)
        if streak >= self.after and step > self._kept[-1].step:
            self._rewind(trainer, pl_module, first_bad=step - streak)
        elif not streak and step >= self._kept[-1].step + self.every:
            self._keep(trainer, pl_module)

    def _keep(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        oldest = self._kept[0] if len(self._kept) == self._kept.maxlen else Snapshot()
        self._kept.append(oldest.take(trainer.global_step, pl_module, trainer.optimizers))

    def _rewind(self, trainer: L.Trainer, pl_module: L.LightningModule, first_bad: int) -> None:
        step, reason = trainer.global_step, updates_of(pl_module).reason
        recent = [at for at in self.rewound_at if at > step - self.window]
        if len(recent) >= self.max_rewinds:
            raise RuntimeError(
                f"{len(recent)} rewinds (at steps {recent}) did not help: the update of step {step - 1} was left out again, "
                f"{reason}. Lower the learning rate, or look at the data of these steps; the newest checkpoint is whole"
            )
        good = [kept for kept in self._kept if kept.step <= first_bad - self.margin]
        chosen = good[-1] if good else self._kept[0]
        chosen.put_back(pl_module, trainer.optimizers)
        self.rewound_at.append(step)
        updates_of(pl_module).in_a_row = 0
        on_rewind: Any = getattr(pl_module, "on_rewind", None)
        if on_rewind is not None:
            on_rewind()
        self._kept = deque([Snapshot().take(step, pl_module, trainer.optimizers)], maxlen=2)
        log.warning(
            "rewound at step %d to the state of step %d, after %d updates in a row were left out (the last because %s); the "
            "data of steps %d to %d is passed over",
            step, chosen.step, step - first_bad, reason, chosen.step, step - 1,
        )  # fmt: skip


@dataclass
class Snapshot:
    """Everything that training changes in a module and its optimizers, this rank's part of it, in the host's memory."""

    step: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: list[dict[Any, dict[str, Any]]] = field(default_factory=list)

    def take(self, step: int, module: nn.Module, optimizers: list[Any]) -> "Snapshot":
        """Copy a state over what was here before; the memory is used again."""
        old, self.step = self.weights, step
        self.weights = {name: _copy(local(tensor), old.get(name)) for name, tensor in _tensors(module)}
        states = [optimizer.state for optimizer in optimizers]
        before = self.moments or [{} for _ in states]
        self.moments = [
            {p: {k: _copy(local(v), was.get(p, {}).get(k)) for k, v in kept.items()} for p, kept in state.items()}
            for state, was in zip(states, before, strict=True)
        ]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self

    @torch.no_grad()
    def put_back(self, module: nn.Module, optimizers: list[Any]) -> None:
        """Make the module and the optimizers what they were."""
        for name, tensor in _tensors(module):
            kept = self.weights[name]
            if kept.shape == local(tensor).shape:
                local(tensor).copy_(kept)
            else:  # a buffer that grows
                owner, _, own = name.rpartition(".")
                setattr(module.get_submodule(owner), own, kept.to(tensor.device, copy=True))
        for optimizer, state in zip(optimizers, self.moments, strict=True):
            for parameter in list(optimizer.state):
                if parameter not in state:
                    del optimizer.state[parameter]
                    continue
                for name, value in state[parameter].items():
                    now = optimizer.state[parameter][name]
                    if isinstance(now, Tensor):
                        local(now).copy_(value)
                    else:
                        optimizer.state[parameter][name] = value


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _copy(value: Any, place: Any) -> Any:
    """A value in the host's memory, in `place` where it fits; tensors of a GPU in memory it can write without waiting."""
    if not isinstance(value, Tensor):
        return value
    fits = isinstance(place, Tensor) and place.shape == value.shape and place.dtype == value.dtype
    made = place if fits else torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    made.copy_(value.detach(), non_blocking=True)
    return made
