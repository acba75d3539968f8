"""Vector quantisation with a codebook that follows its vectors by exponential moving averages.

Source: the released GLM-4-Voice tokenizer (nearest neighbour in L2, Laplace-smoothed counts, restart of dead codes), with three
changes. Statistics are gathered in forward and applied once per optimizer step, so accumulation and checkpointing leave the
averages alone. Random draws come from the frames of all ranks together, so two ranks make the codebook that one rank makes. The
codebook can start from k-means over frames of many batches (one batch has fewer frames than a large codebook has codes).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.nn.frame_pool import FramePool
from speechlm.nn.kmeans import kmeans, nearest
from speechlm.nn.quantizer import Quantized, is_distributed, sum_over_ranks

Init = Literal["kmeans", "frames", "random"]


class EmaVQ(FramePool):
    """EMA codebook of (V, D) float32 vectors.

    Args:
        dim: D.
        num_codes: V: 4096 at 50 and 25 Hz, 16384 at 12.5 Hz, 65536 at 6.25 Hz in the paper.
        decay: of the moving averages.
        commitment: weight of the commitment loss, mean squared distance of the vectors to their (fixed) codes. The released
            model has 10 * 0.25, the GLM-4-Voice report says 10.
        restart_every: updates between restarts of dead codes; 0 never restarts.
        restart_below: a code with a smoothed count under this is dead. None takes `decay ** restart_every` as released (which,
            because of the smoothing, first catches unused codes at the second restart), or 3 % of the average count where that
            is less: with small batches every count is small, and the released bound would throw the whole codebook away.
        init: where the first codebook comes from: k-means over gathered frames, a draw of them, or random numbers.
        init_updates: optimizer steps during which frames are gathered and vectors pass through unquantised. The network gets used
            to pooling before it has to bear quantisation.
        init_frames_per_code: frames gathered per code, drawn evenly over the `init_updates` steps.
        ramp_updates: steps over which quantisation takes over: each recording has a share of its tokens quantised, drawn
            between a bound that rises to 1 over these steps and 1. A network that has never seen codes learns what they mean
            from vectors around them; without the ramp, little data and small batches it loses the thread altogether.
        kmeans_iterations: rounds of Lloyd's algorithm.
        seed: of all random draws.
    """

    codebook: Tensor  # (V, D)
    ema_count: Tensor  # (V,)
    ema_weight: Tensor  # (V, D)
    frames_seen: Tensor  # () on all ranks together while the pool was gathered

    def __init__(
        self,
        dim: int,
        num_codes: int,
        decay: float = 0.99,
        commitment: float = 2.5,
        restart_every: int = 100,
        restart_below: float | None = None,
        init: Init = "kmeans",
        init_updates: int = 100,
        init_frames_per_code: int = 8,
        ramp_updates: int = 0,
        kmeans_iterations: int = 10,
        seed: int = 0,
    ) -> None:
        if init not in ("kmeans", "frames", "random"):
            raise ValueError(f"init must be 'kmeans', 'frames' or 'random', got {init!r}")
        if init != "random" and init_updates < 1:
            raise ValueError(f"a codebook made from data needs init_updates >= 1 step to gather it, got {init_updates}")
        super().__init__(dim, num_codes, 0 if init == "random" else init_updates, ramp_updates, seed)
        self.decay = decay
        self.commitment = commitment
        self.restart_every = restart_every
        self.restart_below = restart_below
        self.init = init
        self.init_frames_per_code = init_frames_per_code
        self.kmeans_iterations = kmeans_iterations
        start = 0.02 * torch.randn(num_codes, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("codebook", start)
        self.register_buffer("ema_count", torch.ones(num_codes))
        self.register_buffer("ema_weight", start.clone())
        self.register_buffer("frames_seen", torch.zeros((), dtype=torch.long))
        self.forget()

    def forward(self, x: Tensor, real: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            x32 = x.float()
            if not self.ready:
                self._gather(x32[real])
                return Quantized(x, torch.full_like(real, -1, dtype=torch.long), x32.new_zeros(()))
            codes = nearest(x32.detach().flatten(0, 1), self.codebook).view(real.shape)
            q = F.embedding(codes, self.codebook)
            self._gather(x32[real], codes[real])
            distance = (x32 - q).square().mean(dim=-1)
            loss = self.commitment * (distance * real).sum() / real.sum().clamp(min=1)
            q = torch.where(self._taken(real)[..., None], q, x32)
        return Quantized(x + (q.to(x) - x).detach(), codes, loss)

    def decode(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook)

    def skip_start(self) -> None:
        """The codebook has been loaded and is in use: gather no frames for a first one, quantise everything at once."""
        self.num_updates.fill_(self.init_updates + self.ramp_updates)

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        if not self.ready:
            self._grow_pool()
        else:
            self._move_averages()
        self.num_updates += 1
        restarted = self._restart() if self.ready and self._restart_is_due() else 0
        if self.pool.numel() and self.ready:
            self._start_codebook()
        self.forget()
        return {"restarted": float(restarted)}

    def _taken(self, real: Tensor) -> Tensor:
        """(B, T) bool, which tokens are quantised: all of them, but in training during the ramp."""
        updates = int(self.num_updates) - self.init_updates
        if not self.training or updates >= self.ramp_updates:
            return torch.ones_like(real)
        done = updates / self.ramp_updates
        return self._taken_between(real, done, 1 - done)

    # -- what forward passes leave for the update ----------------------------------------------------------------------

    def forget(self) -> None:
        super().forget()
        self._count: Tensor | None = None  # (V,)
        self._sum: Tensor | None = None  # (V, D)

    @torch.no_grad()
    def _gather(self, frames: Tensor, codes: Tensor | None = None) -> None:
        """Keep (n, D) frames, and with their (n,) codes the sums per code, until the next update.

        What is not finite is passed over: in an average it would stay for ever.
        """
        if not self.training:
            return
        finite = frames.isfinite().all(1)
        frames, codes = frames[finite], None if codes is None else codes[finite]
        self._frames.append(frames.detach())
        if codes is None:
            return
        if self._count is None or self._sum is None:
            self._count, self._sum = torch.zeros_like(self.ema_count), torch.zeros_like(self.ema_weight)
        self._count += torch.bincount(codes, minlength=self.num_codes)
        self._sum.index_add_(0, codes, frames.detach())

    def _move_averages(self) -> None:
        count = torch.zeros_like(self.ema_count) if self._count is None else self._count
        total = torch.zeros_like(self.ema_weight) if self._sum is None else self._sum
        sum_over_ranks(count)
        sum_over_ranks(total)
        self.ema_count.mul_(self.decay).add_(count, alpha=1 - self.decay)
        everything = self.ema_count.sum()
        self.ema_count.add_(1e-5).mul_(everything / (everything + self.num_codes * 1e-5))  # Laplace smoothing
        self.ema_weight.mul_(self.decay).add_(total, alpha=1 - self.decay)
        self.codebook.copy_(self.ema_weight / self.ema_count[:, None])

    # -- restarts and the first codebook -------------------------------------------------------------------------------

    def _restart_is_due(self) -> bool:
        since_start = int(self.num_updates) - self.init_updates
        return self.restart_every > 0 and since_start > 0 and since_start % self.restart_every == 0

    def _restart(self) -> int:
        """Dead codes become random current frames. Returns how many codes were replaced."""
        bound = self.restart_below
        if bound is None:
            bound = min(self.decay**self.restart_every, 0.03 * float(self.ema_count.mean()))
        dead = torch.nonzero(self.ema_count < bound)[:, 0]
        drawn = self._drawn(len(dead))
        dead = dead[: len(drawn)]  # more dead codes than frames: the rest waits for the next restart
        count = min(1.0, float(self.ema_count.mean()))  # 1 as released, less where an average code has less
        self.codebook[dead], self.ema_weight[dead], self.ema_count[dead] = drawn, drawn * count, count
        return len(dead)

    def _grow_pool(self) -> None:
        per_update = -(-self.num_codes * self.init_frames_per_code // self.init_updates)
        self._add_to_pool(per_update)
        self.frames_seen += sum_over_ranks(torch.tensor(sum(map(len, self._frames)), device=self.pool.device))

    def _start_codebook(self) -> None:
        iterations = self.kmeans_iterations if self.init == "kmeans" else 0
        self.codebook.copy_(kmeans(self.pool, self.num_codes, iterations, self._generator()))
        if is_distributed():  # ranks agree to the last bit, whatever their devices
            torch.distributed.broadcast(self.codebook, src=0)
        per_update = float(self.frames_seen) / self.init_updates
        owned = torch.bincount(nearest(self.pool, self.codebook), minlength=self.num_codes) / len(self.pool)
        self.ema_count.copy_(owned.clamp(min=0.1 / self.num_codes) * per_update)  # as if averaged for long already
        self.ema_weight.copy_(self.codebook * self.ema_count[:, None])
        self.pool = self.pool[:0].clone()
