"""AdamW with learning rates by part of the model, and the schedules of the paper."""

import math
from dataclasses import dataclass, field
from typing import Literal

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class AdamWSettings:
    """How a stage is optimised.

    Args:
        lr: peak learning rate.
        betas: of AdamW.
        weight_decay: of matrices; vectors (norms, biases) are never decayed.
        eps: of AdamW.
        warmup_steps: steps of linear warm-up.
        decay: shape of the way down.
        min_lr: where the way down ends, at the run's last step.
        total_steps: steps of the whole run, where `trainer.max_steps` does not say it (a run that ends with its epochs).
        lr_scale: factor on the learning rate by parameter-name prefix, the longest prefix wins; 0 freezes. For example
            {"model.decoder": 0.1, "model.encoder.layers.0": 0}.
        fused: one kernel for all of a step, and no temporary copies; not where Lightning clips gradients of 16-mixed.
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    eps: float = 1e-6
    warmup_steps: int = 0
    decay: Decay = "linear"
    min_lr: float = 0.0
    total_steps: int | None = None
    lr_scale: dict[str, float] = field(default_factory=dict)
    fused: bool = False

    def __post_init__(self) -> None:
        if self.decay not in ("constant", "linear", "cosine"):
            raise ValueError(f"decay must be 'constant', 'linear' or 'cosine', got {self.decay!r}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr}) must not exceed lr ({self.lr})")

    def freeze(self, module: nn.Module) -> None:
        """Take the gradients away from every parameter whose factor is 0.

        Raises:
            ValueError: a prefix fits no parameter, so that a misspelt name can not silently train or freeze the wrong thing.
        """
        names = [name for name, _ in module.named_parameters()]
        for prefix in self.lr_scale:
            if not any(_starts_with(name, prefix) for name in names):
                raise ValueError(
                    f"lr_scale names {prefix!r}, which is no part of the model; its parts are {_parts(names)}"
                )
        for name, parameter in module.named_parameters():
            if self._scale(name) == 0.0:
                parameter.requires_grad_(False)

    def steps_of(self, max_steps: int) -> int:
        """Steps the schedule is spread over, from the trainer's `max_steps` (-1 where it has none).

        Raises:
            ValueError: nobody says how many steps there will be, and the schedule depends on it.
        """
        steps = self.total_steps or (max_steps if max_steps > 0 else 0)
        if not steps and self.decay != "constant":
            raise ValueError(
                f"decay {self.decay!r} needs to know where the run ends; set `trainer.max_steps` or `optimizer.total_steps`"
            )
        return steps

    def build(self, module: nn.Module, total_steps: int) -> tuple[Optimizer, LambdaLR]:
        """The optimizer over every parameter that has a gradient, and its schedule over `total_steps` steps."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                decay = self.weight_decay if parameter.ndim >= 2 else 0.0
                groups.setdefault((self._scale(name), decay), []).append(parameter)
        optimizer = AdamW(
            [{"params": p, "lr": self.lr * scale, "weight_decay": decay} for (scale, decay), p in groups.items()],
            betas=self.betas,
            eps=self.eps,
            fused=self.fused or None,
        )
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, total_steps))

    def for_stage(self, stage: L.LightningModule) -> OptimizerLRScheduler:
        """What `configure_optimizers` of a stage with this one optimizer returns."""
        optimizer, schedule = self.build(stage, self.steps_of(stage.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def factor(self, step: int, total_steps: int) -> float:
        """Share of the peak learning rate at a step, in [0, 1]."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        left = 1.0 - progress if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        floor = self.min_lr / self.lr
        return floor + (1.0 - floor) * left

    def _scale(self, name: str) -> float:
        fitting = [prefix for prefix in self.lr_scale if _starts_with(name, prefix)]
        return self.lr_scale[max(fitting, key=len)] if fitting else 1.0


def _starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _parts(names: list[str]) -> list[str]:
    return sorted({".".join(name.split(".")[:3]) for name in names})
