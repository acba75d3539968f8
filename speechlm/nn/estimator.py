"""What every velocity network of the flow promises, and the embedding of time they share."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Conditions(NamedTuple):
    """What the velocity is told beside the point on the path; zeros where it is told nothing."""

    mu: Tensor  # (B, M, F) what the tokens say of each frame
    speaker: Tensor  # (B, M)
    prompt: Tensor  # (B, M, F) mel of the frames that are known already, 0 elsewhere

    @property
    def channels(self) -> Tensor:
        """(B, 3M, F), in the released order."""
        speaker = self.speaker[:, :, None].expand(-1, -1, self.mu.shape[2])
        return torch.cat([self.mu, speaker, self.prompt], dim=1)

    def kept(self, keep: Tensor) -> "Conditions":
        """Everything taken away where (B,) `keep` is 0."""
        keep = keep.to(self.mu.dtype)
        return Conditions(
            self.mu * keep[:, None, None], self.speaker * keep[:, None], self.prompt * keep[:, None, None]
        )

    @staticmethod
    def both(one: "Conditions", other: "Conditions") -> "Conditions":
        """Two batches as one."""
        return Conditions(*(torch.cat(pair) for pair in zip(one, other, strict=True)))


class Estimator(nn.Module):
    """Base of all velocity networks: shapes, nothing else.

    Args:
        num_mels: mel bins M.
    """

    causal = False  # whether frames of a block depend on blocks up to their own only, see `extend`

    def __init__(self, num_mels: int) -> None:
        super().__init__()
        self.num_mels = num_mels

    def forward(
        self, x_t: Tensor, t: Tensor, conditions: Conditions, mel_lens: Tensor | None, blocks: Tensor
    ) -> Tensor:
        """The velocity at a point.

        Args:
            x_t: (B, M, F).
            t: (B,) in [0, 1].
            conditions: see `Conditions`.
            mel_lens: (B,) frames, None where every row is full. What lies behind a recording's end changes nothing.
            blocks: (F,) number of the block of tokens that each frame belongs to; of causal forms only.

        Returns:
            (B, M, F), zeros behind each end.
        """
        raise TypeError(f"{type(self).__name__} must define forward")

    def extend(
        self, x_t: Tensor, t: Tensor, conditions: Conditions, blocks: Tensor, state: Any = None
    ) -> tuple[Tensor, Any]:
        """The velocity of further frames, whole blocks of them unless they are the last, and what the next ones need; causal
        forms only."""
        raise TypeError(f"{type(self).__name__} can not go on where it stopped")


class TimeEmbedding(nn.Module):
    """(B,) times in [0, 1] -> (B, D): sinusoids of 1000 t through two linear layers.

    Args:
        channels: of the sinusoids.
        width: D.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1, self.linear_2 = nn.Linear(channels, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        half = self.channels // 2
        with torch.autocast(t.device.type, enabled=False):  # bfloat16 can not tell 999 from 1000
            rate = torch.exp(torch.arange(half, device=t.device).float() * (-math.log(10_000.0) / (half - 1)))
            angle = 1000.0 * t.float()[:, None] * rate
            waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.linear_2(nn.functional.silu(self.linear_1(waves)))
