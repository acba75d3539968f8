"""How a quantizer starts from data: frames of many batches are gathered, on all ranks together, then quantisation takes over."""

import torch
from torch import Tensor

from speechlm.nn.quantizer import Quantizer, is_distributed, sum_over_ranks


class FramePool(Quantizer):
    """A quantizer that lets vectors pass for some updates and gathers frames of them; what becomes of them is a subclass's.

    Args:
        dim: D.
        num_codes: V.
        init_updates: updates in which frames are gathered.
        ramp_updates: updates behind them over which quantisation takes over.
        seed: of all draws.
    """

    num_updates: Tensor  # ()
    pool: Tensor  # (frames, D) gathered for the start; empty before and after

    def __init__(self, dim: int, num_codes: int, init_updates: int, ramp_updates: int, seed: int) -> None:
        super().__init__(dim, num_codes)
        self.init_updates, self.ramp_updates, self.seed = init_updates, ramp_updates, seed
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("pool", torch.zeros(0, dim))
        self._frames: list[Tensor] = []  # (n, D) of each forward pass since the last update

    @property
    def ready(self) -> bool:
        return int(self.num_updates) >= self.init_updates

    def forget(self) -> None:
        self._frames = []

    def _add_to_pool(self, num: int) -> None:
        self.pool = torch.cat([self.pool, self._drawn(num)])

    def _drawn(self, num: int) -> Tensor:
        """(<= num, D) frames seen since the last update, of all ranks, the same on each of them."""
        local = torch.cat(self._frames) if self._frames else self.pool.new_zeros(0, self.dim)
        return draw_frames(local, num, self._generator())

    def _generator(self) -> torch.Generator:
        """The same on every rank, another one after every update."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.num_updates))

    def _taken_between(self, real: Tensor, low: float, spread: float) -> Tensor:
        """(B, T) bool, which tokens are quantised: of each recording a share of its own, between `low` and `low + spread`."""
        generator = self._generator()
        share = low + spread * torch.rand(len(real), 1, generator=generator)
        return (torch.rand(real.shape, generator=generator) < share).to(real.device)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """The pool's size depends on when the checkpoint was written; a run that was begun before there was a pool has none."""
        saved = state_dict.setdefault(prefix + "pool", self.pool[:0])
        self.pool = self.pool.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


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
