"""The Snake activation: a periodic bias for networks that make sound. https://arxiv.org/abs/2006.08195"""

import torch
from torch import Tensor, nn


class Snake(nn.Module):
    """x + sin²(αx) / α, one learnt α per channel; 0 stays 0.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N)."""
        alpha = self.alpha[None, :, None]
        return x + torch.sin(x * alpha).square() / (alpha + 1e-9)
