"""A draw of frames from all ranks together, the same on each of them."""

import torch
from torch import Tensor

from speechlm.nn.quantizer import is_distributed, sum_over_ranks


def draw_frames(local: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """(n, D) frames of this rank -> (<= num, D) frames drawn over all ranks; every rank gets the same ones.

    Which frame is drawn depends on the frames of all ranks in rank order, not on how they were split among ranks.

    Args:
        local: this rank's frames; ranks may have different numbers of them.
        num: how many.
        generator: in the same state on every rank.
    """
    sizes = _gather_sizes(len(local), local.device)
    total, before = int(sizes.sum()), int(sizes[: _rank()].sum())
    picks = torch.randperm(total, generator=generator)[:num].to(local.device) - before
    mine = (picks >= 0) & (picks < len(local))
    drawn = local.new_zeros(len(picks), local.shape[1])
    drawn[mine] = local[picks[mine]]
    return sum_over_ranks(drawn)


def _rank() -> int:
    return torch.distributed.get_rank() if is_distributed() else 0


def _gather_sizes(size: int, device: torch.device) -> Tensor:
    """(ranks,) how many frames each rank holds."""
    world = torch.distributed.get_world_size() if is_distributed() else 1
    sizes = torch.zeros(world, dtype=torch.long, device=device)
    sizes[_rank()] = size
    return sum_over_ranks(sizes)
