"""Finite scalar quantisation between two small networks: a codebook that gradients shape, where hours of speech are few."""

import torch
import vector_quantize_pytorch as vq
from torch import Tensor, nn

from speechlm.nn.quantizer import Quantized, Quantizer

SPREAD = 5.0  # of what torch's own start gives, a fifth of unit size


class DeepFSQ(Quantizer):
    """A network squeezes each vector into a few numbers, which are rounded; another makes a vector of full width of them.

    Averages (`EmaVQ`) can not follow a network that moves while batches are small, and one linear map to a few numbers (`FSQ`)
    gives the layers above only as many directions. Here every code has a vector of its own, all of them move with every step, and
    no code can die. Quantisation takes over step by step: `init_updates` with none, in which both networks learn to hand vectors
    through, then `ramp_updates` in which ever more tokens are quantised.

    Args:
        dim: D.
        levels: levels per number; V is their product, [4] * 7 is 16384.
        hidden: width of the networks.
        init_updates: updates in which all vectors pass unquantised.
        ramp_updates: updates behind them until every token is quantised.
        reconstruction: weight of the distance between a vector and what its code becomes, which fades out with the ramp.
        seed: of the choice of tokens during the ramp.

    Source: Mentzer et al. 2023, arXiv 2309.15505, for the rounding.
    """

    num_updates: Tensor

    def __init__(
        self,
        dim: int,
        levels: list[int],
        hidden: int = 768,
        init_updates: int = 0,
        ramp_updates: int = 0,
        reconstruction: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, int(torch.tensor(levels).prod()))
        self.fsq = vq.FSQ(levels=levels)
        last = nn.Linear(hidden, len(levels))
        with torch.no_grad():  # numbers of about unit size, so that all levels are in use from the start
            last.weight.mul_(SPREAD)
        self.squeeze = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), last)
        self.expand = nn.Sequential(
            nn.Linear(len(levels), hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )
        self.init_updates, self.ramp_updates, self.seed = init_updates, ramp_updates, seed
        self.reconstruction = reconstruction
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    @property
    def share(self) -> float:
        """Share of the tokens that are quantised in training."""
        done = int(self.num_updates) - self.init_updates
        return min(1.0, max(0.0, (done + 1) / (self.ramp_updates + 1)))

    def forward(self, x: Tensor, real: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            rounded, codes = self.fsq(self.squeeze(x.float()))
            q = self.expand(rounded)
            loss = self._loss(q, x.float(), real)
        if self.training and self.share < 1.0:
            q = torch.where(self._taken(real)[..., None], q, x.to(q))
        return Quantized(q.to(x), codes.long(), loss)

    def decode(self, codes: Tensor) -> Tensor:
        return self.expand(self.fsq.indices_to_codes(codes))

    def update(self) -> dict[str, float]:
        """One step further on the ramp."""
        share = self.share
        self.num_updates += 1
        return {"share": share}

    def _loss(self, q: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """Distance to the vectors, in units of their variance; 0 once everything is quantised."""
        weight = self.reconstruction * (1.0 - self.share)
        if not weight or not real.any():
            return q.new_zeros(())
        target = x.detach()[real]
        return weight * (q[real] - target).square().mean() / target.var().clamp(min=1e-6)

    def _taken(self, real: Tensor) -> Tensor:
        """(B, T) bool, which tokens are quantised: each recording has a share of its own."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.num_updates))
        share = self.share
        own = share if share == 0 else share + (1 - share) * torch.rand(len(real), 1, generator=generator) * share
        return (torch.rand(real.shape, generator=generator) < own).to(real.device)
