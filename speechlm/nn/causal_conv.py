"""A convolution over time that sees the past only, whole or chunk by chunk."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv(nn.Conv1d):
    """(B, C, F) -> (B, C', F); frame f depends on frames f - kernel + 1 to f.

    Args:
        channels: in.
        out_channels: out.
        kernel: frames.
        groups: see `nn.Conv1d`.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, groups: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """The whole; silence lies before it."""
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))

    def extend(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """Further frames and the tail of those before them, None at the beginning -> output and the new tail."""
        reach = self.kernel_size[0] - 1
        if tail is None:
            tail = x.new_zeros(*x.shape[:2], reach)
        x = torch.cat([tail, x], dim=2)
        return super().forward(x), x[:, :, x.shape[2] - reach :]
