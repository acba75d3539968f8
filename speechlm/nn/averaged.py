"""An exponential moving average of a network, as a second network beside it that people use."""

from copy import deepcopy

import torch
from torch import nn


def average_of(network: nn.Module, decay: float) -> nn.Module:
    """A copy of a network that follows it by `follow`, without gradients.

    Raises:
        ValueError: a decay that forgets everything or learns nothing.
    """
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay must be between 0 and 1 (or null), got {decay}")
    return deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, updates: int) -> None:
    """Take in the weights after an update; `updates` were made before, and in the beginning only the last few count."""
    keep = min(decay, (1 + updates) / (10 + updates))
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], 1.0 - keep)
