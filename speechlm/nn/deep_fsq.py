"""Finite scalar quantisation between two small networks: a codebook that gradients shape, where hours of speech are few."""

import torch
import vector_quantize_pytorch as vq
from torch import Tensor, nn

from speechlm.nn.frame_pool import FramePool
from speechlm.nn.quantizer import Quantized, is_distributed

FIT_BATCH = 512  # frames
FIT_LR = 1e-3


class DeepFSQ(FramePool):
    """A network squeezes each vector into a few numbers, which are rounded; another makes a vector of full width of them.

    Averages (`EmaVQ`) can not follow a network that moves while batches are small, and one linear map to a few numbers (`FSQ`)
    gives the layers above only as many directions. Here every code has a vector of its own, and all of them move with every step.

    Vectors pass unquantised for `init_updates`, while frames of many batches are gathered. Of those both networks are made, as an
    autoencoder of every dimension by its own spread: with the mean left in, or in units of the loudest dimensions, the networks
    fall into a handful of codes (docs/log.md). Then quantisation takes over step by step over `ramp_updates`.

    Args:
        dim: D.
        levels: levels per number; V is their product, [4] * 7 is 16384.
        hidden: width of the networks.
        init_updates: updates in which all vectors pass unquantised; with 0 the networks start at random.
        init_frames: frames gathered in them.
        fit_updates: updates of the networks on those frames.
        ramp_updates: updates behind them until every token is quantised.
        reconstruction: weight of the distance between a vector and what its code becomes, which fades out with the ramp.
        seed: of the choice of frames and tokens.

    Source: Mentzer et al. 2023, arXiv 2309.15505, for the rounding.
    """

    def __init__(
        self,
        dim: int,
        levels: list[int],
        hidden: int = 768,
        init_updates: int = 0,
        init_frames: int = 25_000,
        fit_updates: int = 600,
        ramp_updates: int = 0,
        reconstruction: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, int(torch.tensor(levels).prod()), init_updates, ramp_updates, seed)
        self.fsq = vq.FSQ(levels=levels)
        self.squeeze = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, len(levels))
        )
        self.expand = nn.Sequential(
            nn.Linear(len(levels), hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )
        self.init_frames, self.fit_updates, self.reconstruction = init_frames, fit_updates, reconstruction

    @property
    def share(self) -> float:
        """Share of the tokens that are quantised in training."""
        done = int(self.num_updates) - self.init_updates
        return min(1.0, max(0.0, (done + 1) / (self.ramp_updates + 1)))

    def forward(self, x: Tensor, real: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            if not self.ready:
                if self.training:
                    self._frames.append(x.detach().float()[real])
                unused = 0.0 * sum(p.sum() for p in self.parameters())  # data-parallel training asks for every gradient
                return Quantized(x, torch.full_like(real, -1, dtype=torch.long), torch.as_tensor(unused))
            rounded, codes = self.fsq(self.squeeze(x.float()))
            q = self.expand(rounded)
            loss = self._loss(q, x.float(), real)
        if self.training and self.share < 1.0:
            q = torch.where(self._taken(real)[..., None], q, x.to(q))
        return Quantized(q.to(x), codes.long(), loss)

    def decode(self, codes: Tensor) -> Tensor:
        return self.expand(self.fsq.indices_to_codes(codes))

    def update(self) -> dict[str, float]:
        """One step further on the way to quantised vectors."""
        share = self.share if self.ready else 0.0
        if not self.ready:
            self._add_to_pool(-(-self.init_frames // self.init_updates))
        self.num_updates += 1
        if self.pool.numel() and self.ready:
            self._start()
        self.forget()
        return {"share": share}

    # -- the start ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Both networks as an autoencoder of the pool, the same on every rank."""
        mean, spread = self.pool.mean(0), self.pool.std(0).clamp(min=1e-6)
        self._fit(mean, spread)
        with torch.no_grad():  # the last layer gives vectors as they are
            last = self.expand[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(spread[:, None])
            last.bias.mul_(spread).add_(mean)
        if is_distributed():  # ranks agree to the last bit, whatever their devices
            for parameter in self.parameters():
                torch.distributed.broadcast(parameter.data, src=0)
        self.pool = self.pool[:0].clone()

    @torch.enable_grad()
    def _fit(self, mean: Tensor, spread: Tensor) -> None:
        generator = self._generator()
        networks = [*self.squeeze.parameters(), *self.expand.parameters()]
        optimizer = torch.optim.AdamW(networks, lr=FIT_LR)
        with torch.autocast(self.pool.device.type, enabled=False):
            for _ in range(self.fit_updates):
                drawn = torch.randint(len(self.pool), (FIT_BATCH,), generator=generator)
                x = self.pool[drawn.to(self.pool.device)]
                made = self.expand(self.fsq(self.squeeze(x)[None])[0])[0]
                gradients = torch.autograd.grad((made - (x - mean) / spread).square().mean(), networks)
                for parameter, gradient in zip(networks, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        for parameter in networks:
            parameter.grad = None

    # -- the ramp -------------------------------------------------------------------------------------------------------

    def _loss(self, q: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """Distance to the vectors, in units of their variance; 0 once everything is quantised."""
        weight = self.reconstruction * (1.0 - self.share)
        if not weight or not real.any():
            return q.new_zeros(())
        target = x.detach()[real]
        return weight * (q[real] - target).square().mean() / target.var().clamp(min=1e-6)

    def _taken(self, real: Tensor) -> Tensor:
        """(B, T) bool, which tokens are quantised."""
        return self._taken_between(real, self.share, (1 - self.share) * self.share)
