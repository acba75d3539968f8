"""Conditional flow matching on straight paths: from noise z at t = 0 to data x₁ at t = 1. https://arxiv.org/abs/2210.02747

    x_t = (1 - (1 - σ) t) z + t x₁        dx_t/dt = x₁ - (1 - σ) z

Letters are the paper's; guidance without a classifier is https://arxiv.org/abs/2207.12598.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SIGMA_MIN = 1e-6

Velocity = Callable[[Tensor, Tensor, int], Tensor]  # (B, M, F) point, scalar time, number of the step -> (B, M, F)


class PathSample(NamedTuple):
    """A point on the path."""

    x_t: Tensor  # (B, M, F)
    dx_t: Tensor  # (B, M, F) the velocity there: what the network regresses


def path_sample(z: Tensor, x_1: Tensor, t: Tensor, sigma_min: float = SIGMA_MIN) -> PathSample:
    """Where the path from (B, M, F) noise to (B, M, F) data is at (B,) times, and how it moves."""
    t = t[:, None, None]
    return PathSample((1.0 - (1.0 - sigma_min) * t) * z + t * x_1, x_1 - (1.0 - sigma_min) * z)


def cosine(u: Tensor) -> Tensor:
    """Uniform numbers in [0, 1] to times in [0, 1] that are dense near the noise: 1 - cos(πu / 2)."""
    return 1.0 - torch.cos(u * (0.5 * math.pi))


def flow_loss(v: Tensor, dx_t: Tensor, real: Tensor) -> Tensor:
    """Mean squared error of (B, M, F) velocities over the frames where (B, F) `real` is True."""
    error = (v.float() - dx_t.float()).square().mean(1)
    return (error * real).sum() / real.sum()


def guided(v_conditional: Tensor, v_unconditional: Tensor, strength: float) -> Tensor:
    """Away from what would be said of nothing: (1 + w) v_c - w v_u."""
    return (1.0 + strength) * v_conditional - strength * v_unconditional


def euler(velocity: Velocity, z: Tensor, times: Tensor) -> Tensor:
    """Follow the velocity from (B, M, F) noise at `times[0]` to `times[-1]`, one step between each two."""
    x = z
    for step in range(len(times) - 1):
        x = x + (times[step + 1] - times[step]) * velocity(x, times[step], step)
    return x


def cosine_times(steps: int, device: torch.device | None = None) -> Tensor:
    """(steps + 1,) times of `steps` Euler steps."""
    return cosine(torch.linspace(0.0, 1.0, steps + 1, device=device))
