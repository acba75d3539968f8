"""The released tokenizer's own codebook update, for going on with its training exactly as it was trained.

Source: the released GLM-4-Voice tokenizer (speech_tokenizer/modeling_whisper.py). It differs from `EmaVQ`, which has its reasons,
in four things. Every forward pass in training moves the averages, so micro-batches of one optimizer step count one by one. A code
is dead below `decay ** restart_every`, however small the batches. Each rank restarts its own segment of the codebook from its own
frames, so the codebook depends on the number of ranks. A restarted code counts 1.
"""

import torch
from torch import Tensor

from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.quantizer import Quantized, is_distributed, sum_over_ranks


class ReleasedVQ(EmaVQ):
    """EMA codebook of (V, D) float32 vectors that moves in every training forward pass.

    Args:
        dim: D.
        num_codes: V; the number of ranks must divide it.
        decay: of the moving averages.
        commitment: weight of the commitment loss, the released `quantize_loss_scale * quantize_commit_coefficient`.
        restart_every: forward passes between restarts of dead codes.
        seed: of the frames drawn for restarts.

    Raises:
        ValueError: on a restart, the number of ranks does not divide the codebook.
    """

    def __init__(
        self,
        dim: int,
        num_codes: int,
        decay: float = 0.99,
        commitment: float = 2.5,
        restart_every: int = 100,
        seed: int = 0,
    ) -> None:
        bound = decay**restart_every
        super().__init__(dim, num_codes, decay, commitment, restart_every, bound, init="random", seed=seed)
        self._restarted = 0

    def forward(self, x: Tensor, real: Tensor) -> Quantized:
        quantized = super().forward(x, real)
        if self.training:
            self._restarted += int(super().update()["restarted"])
        return quantized

    def update(self) -> dict[str, float]:
        """Nothing but the count of codes restarted since the last call: forward passes have moved the codebook."""
        restarted, self._restarted = self._restarted, 0
        return {"restarted": float(restarted)}

    def _restart(self) -> int:
        """Dead codes become random frames of the rank that owns them."""
        begin, end = self._segment()
        bound = self.decay**self.restart_every
        dead = begin + torch.nonzero(self.ema_count[begin:end] < bound)[:, 0]
        frames = torch.cat(self._frames)
        picks = torch.randperm(len(frames), generator=self._generator())[: len(dead)].to(frames.device)
        dead = dead[: len(picks)]  # the released code stops with an error where frames are fewer
        drawn, replaced = torch.zeros_like(self.codebook), torch.zeros_like(self.ema_count)
        drawn[dead], replaced[dead] = frames[picks], 1.0
        taken = sum_over_ranks(replaced) > 0
        self.codebook[taken] = self.ema_weight[taken] = sum_over_ranks(drawn)[taken]
        self.ema_count[taken] = 1.0
        return int(taken.sum())

    def _segment(self) -> tuple[int, int]:
        """First and last code, the latter excluded, that this rank looks after."""
        rank, world = 0, 1
        if is_distributed():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self.num_codes % world:
            raise ValueError(
                f"the released codebook update splits the codes evenly among ranks, and {world} ranks do not divide "
                f"{self.num_codes} codes; train on another number of ranks, or with speechlm.nn.ema_vq.EmaVQ"
            )
        size = self.num_codes // world
        return rank * size, (rank + 1) * size
