"""What every quantizer promises: vectors in, codes and their vectors out, one loss, and an update at the optimizer step."""

from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor, nn


class Quantized(NamedTuple):
    """The outcome of one pass through a quantizer."""

    vectors: Tensor  # (B, T, D) quantised vectors; gradients pass straight through to the input
    codes: Tensor  # (B, T) int64 in [0, num_codes); -1 while the codebook has not been initialised
    loss: Tensor  # scalar, masked: what the quantizer adds to the training loss


class Quantizer(nn.Module):
    """Base of all quantizers: shapes and the life cycle, nothing else.

    The forward pass never changes the codebook: with gradient accumulation or activation checkpointing it may run any number of
    times per step. What a step learns about the codebook is gathered in forward and applied by `update`, once per optimizer step.

    Args:
        dim: width D of the vectors.
        num_codes: size V of the codebook.
    """

    def __init__(self, dim: int, num_codes: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_codes = num_codes

    def forward(self, x: Tensor, real: Tensor) -> Quantized:
        """(B, T, D) vectors and (B, T) bool, True where not padding."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def decode(self, codes: Tensor) -> Tensor:
        """(…) codes -> (…, D) vectors."""
        raise TypeError(f"{type(self).__name__} must define decode")

    def update(self) -> dict[str, float]:
        """Apply what the forward passes since the last update have seen; called once per optimizer step, on every rank.

        Returns:
            Numbers worth logging, by name.
        """
        return {}

    def forget(self) -> None:
        """What the forward passes since the last update have seen is not to be learnt; instead of `update`, on every rank."""

    @property
    def ready(self) -> bool:
        """False while vectors still pass through unquantised, before a codebook made from data exists."""
        return True


def is_distributed() -> bool:
    """Whether there are other ranks to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """`x` summed over all ranks, in place; itself where there is one rank."""
    if is_distributed():
        dist.all_reduce(x)
    return x
