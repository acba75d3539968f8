"""From the rate of tokens to the rate of mel frames: every frame takes its token's vector, then convolutions smooth the steps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.causal_conv import CausalConv
from speechlm.nn.masked_norm import MaskedGroupNorm
from speechlm.nn.masks import length_mask
from speechlm.tokens.clock import Clock


class LengthRegulator(nn.Module):
    """Base of both forms."""

    causal = False  # whether a frame depends on tokens up to its own only, so that it can be made before the others are known
    parts = 1  # P: of a token's span, of which its vector speaks one after another

    def forward(self, x: Tensor, lens: Tensor, mel_lens: Tensor, clock: Clock) -> Tensor:
        """(B, T, P * M), (B,) tokens and (B,) frames -> (B, M, F), zeros behind each end; each row as if it were alone."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def spread(self, x: Tensor, frames: Tensor, clock: Clock, start: int = 0) -> Tensor:
        """What `extend` takes: of (B, T, P * M) tokens from number `start` on, for each of (F,) frames -> (B, M, F)."""
        raise TypeError(f"{type(self).__name__} can not go on where it stopped")

    def extend(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """(B, M, F) vectors of further frames' tokens, and what is kept of those before -> (B, M, F); of causal forms only."""
        raise TypeError(f"{type(self).__name__} can not go on where it stopped")


class StretchedTokens(LengthRegulator):
    """The released form: tokens are stretched over the frames (nearest neighbour), then convolved with both sides in view.

    Modules are named as in the released weights.

    Args:
        channels: M.
        convolutions: how many, each with a normalisation over the whole recording and Mish.
    """

    def __init__(self, channels: int = 80, convolutions: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv1d(channels, channels, 3, padding=1), MaskedGroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, lens: Tensor, mel_lens: Tensor, clock: Clock) -> Tensor:
        width = int(mel_lens.max())
        x = taken(x, stretched_indices(lens, mel_lens, width))
        real = length_mask(mel_lens, width)[:, None]
        partly = None if bool((mel_lens == width).all()) else real
        for layer in self.model:
            x = layer(x, partly) if isinstance(layer, MaskedGroupNorm) else layer(x * real)
        return x * real


class ClockedTokens(LengthRegulator):
    """The streaming form: a frame takes the token that is spoken in its middle, whatever comes later; convolutions see the past.

    Args:
        channels: M.
        convolutions: how many, each with a normalisation over the channels and Mish.
        kernel: frames that each sees.
        parts: P, of a token's span: each has a vector of its own. With 1, all frames of a token are told the same, and what
            happens within it is left to the velocity; small networks learn far faster with about one part a frame.
    """

    causal = True

    def __init__(self, channels: int = 80, convolutions: int = 4, kernel: int = 3, parts: int = 1) -> None:
        super().__init__()
        if parts < 1:
            raise ValueError(f"a token has at least 1 part, got {parts}")
        self.parts = parts
        self.convolutions = nn.ModuleList(CausalConv(channels, channels, kernel) for _ in range(convolutions))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(convolutions))
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, lens: Tensor, mel_lens: Tensor, clock: Clock) -> Tensor:
        width = int(mel_lens.max())
        made, _ = self.extend(self.spread(x, torch.arange(width, device=x.device), clock))
        return made * length_mask(mel_lens, width)[:, None]

    def spread(self, x: Tensor, frames: Tensor, clock: Clock, start: int = 0) -> Tensor:
        """(B, T, P * M) tokens from number `start` on, (F,) frames -> (B, M, F): the part spoken in each one's middle."""
        index = ((clock.token_of_frame(frames) - start) * self.parts + clock.part_of_frame(frames, self.parts)).expand(
            len(x), -1
        )
        x = x.unflatten(2, (self.parts, -1)).flatten(1, 2)
        return taken(x, index.clamp(max=x.shape[1] - 1))

    def extend(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        tails = []
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            assert isinstance(convolution, CausalConv)
            x, tail = convolution.extend(x, state[number] if state else None)
            x = F.mish(norm(x.transpose(1, 2))).transpose(1, 2)
            tails.append(tail)
        return self.out(x), tails


def taken(x: Tensor, indices: Tensor) -> Tensor:
    """(B, T, M) and (B, F) indices of tokens -> (B, M, F)."""
    return x.gather(1, indices[:, :, None].expand(-1, -1, x.shape[2])).transpose(1, 2)


def stretched_indices(lens: Tensor, mel_lens: Tensor, width: int) -> Tensor:
    """(B,) tokens and (B,) frames -> (B, width) which token each frame takes, as torch's nearest interpolation has it.

    In float32, as there: with 50 tokens over 344 frames, frame 172 falls just below token 25 or upon it, by rounding alone.
    """
    scale = (lens.float() / mel_lens.float())[:, None]
    index = (torch.arange(width, device=lens.device, dtype=torch.float32) * scale).floor().long()
    return index.minimum(lens[:, None] - 1)
