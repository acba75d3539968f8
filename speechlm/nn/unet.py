"""The released velocity network: Matcha-TTS's one-dimensional U-Net as CosyVoice and GLM-4-Voice use it.

https://arxiv.org/abs/2309.03199. Every frame sees the whole recording. Modules are named as in the released weights.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.estimator import Conditions, Estimator, TimeEmbedding
from speechlm.nn.masked_norm import MaskedGroupNorm
from speechlm.nn.masks import attention_mask, length_mask, masked

GROUPS = 8


class UNet(Estimator):
    """Residual blocks and transformers at falling and rising frame rates, halved between each two of `channels`.

    Args:
        num_mels: M.
        channels: width at each rate.
        transformers: transformer blocks behind each residual block.
        mid_stages: residual blocks with their transformers at the lowest rate.
        heads: of attention.
        head_width: d of each head.
        dropout: in the transformers.
    """

    def __init__(
        self,
        num_mels: int = 80,
        channels: tuple[int, ...] = (256, 256),
        transformers: int = 4,
        mid_stages: int = 12,
        heads: int = 8,
        head_width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_mels)
        if not channels or any(width % GROUPS for width in channels):
            raise ValueError(f"the U-Net's channels are multiples of {GROUPS}, got {channels}")
        time_width = channels[0] * 4
        self.time_mlp = TimeEmbedding(4 * num_mels, time_width)

        def stage(wide: int, narrow: int, *change: nn.Module) -> nn.ModuleList:
            blocks = (_Transformer(narrow, heads, head_width, dropout) for _ in range(transformers))
            return nn.ModuleList([_ResBlock(wide, narrow, time_width), nn.ModuleList(blocks), *change])

        last = len(channels) - 1
        self.down_blocks = nn.ModuleList(
            stage(wide, narrow, _same(narrow) if i == last else _Down(narrow))
            for i, (wide, narrow) in enumerate(pairwise((4 * num_mels, *channels)))
        )
        self.mid_blocks = nn.ModuleList(stage(channels[-1], channels[-1]) for _ in range(mid_stages))
        rising = (*channels[::-1], channels[0])
        self.up_blocks = nn.ModuleList(
            stage(2 * wide, narrow, _same(narrow) if i == last else _Up(narrow))
            for i, (wide, narrow) in enumerate(pairwise(rising))
        )
        self.final_block = _Block(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], num_mels, 1)
        self.apply(_initialised)

    def forward(
        self, x_t: Tensor, t: Tensor, conditions: Conditions, mel_lens: Tensor | None, blocks: Tensor
    ) -> Tensor:
        time = self.time_mlp(t)
        x = torch.cat([x_t, conditions.channels], dim=1)
        masks = [None if mel_lens is None else length_mask(mel_lens, x.shape[2])[:, None]]
        skips = []
        for stage in self.down_blocks:
            resnet, transformers, change = stage.children()
            x = _stage(x, time, masks[-1], resnet, transformers)
            skips.append(x)
            x = change(masked(x, masks[-1]))
            masks.append(masks[-1] if x.shape[2] == skips[-1].shape[2] else _halved(masks[-1]))
        for stage in self.mid_blocks:
            resnet, transformers = stage.children()
            x = _stage(x, time, masks[-1], resnet, transformers)
        for stage in self.up_blocks:
            resnet, transformers, change = stage.children()
            masks.pop()
            skip = skips.pop()
            x = torch.cat([x[:, :, : skip.shape[2]], skip], dim=1)  # what was rounded up on the way down
            x = change(masked(_stage(x, time, masks[-1], resnet, transformers), masks[-1]))
        return masked(self.final_proj(masked(self.final_block(x, masks[0]), masks[0])), masks[0])


class _Block(nn.Module):
    """Convolution, normalisation over a group of channels and all frames, Mish."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        conv, norm = nn.Conv1d(channels, out_channels, 3, padding=1), MaskedGroupNorm(GROUPS, out_channels)
        self.block = nn.Sequential(conv, norm, nn.Mish())

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(B, C, F) and (B, 1, F) bool or None -> (B, C', F)."""
        conv, norm, mish = self.block
        return masked(mish(norm(conv(masked(x, real)), real)), real)


class _ResBlock(nn.Module):
    """Two blocks with the time between them, beside a shortcut."""

    def __init__(self, channels: int, out_channels: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, out_channels))
        self.block1, self.block2 = _Block(channels, out_channels), _Block(out_channels, out_channels)
        self.res_conv = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor, real: Tensor | None) -> Tensor:
        """(B, C, F), (B, D), (B, 1, F) bool or None -> (B, C', F)."""
        h = self.block1(x, real) + self.mlp(time)[:, :, None]
        return self.block2(h, real) + self.res_conv(masked(x, real))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, width), nn.Dropout(dropout)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, F, C) and an additive mask or None -> (B, F, C)."""
        q, k, v = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v))
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))
        x = heard.transpose(1, 2).flatten(2)
        for part in self.to_out:
            x = part(x)
        return x


class _Gelu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class _FeedForward(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(_Gelu(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Transformer(nn.Module):
    """Attention and feed-forward network, each normalised first and beside a shortcut."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.attn1, self.ff = _Attention(width, heads, head_width, dropout), _FeedForward(width, dropout)
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, F, C) and an additive mask or None -> (B, F, C)."""
        x = x + self.attn1(self.norm1(x), mask)
        return x + self.ff(self.norm3(x))


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F) -> (B, C, F / 2 rounded up)."""
        return self.conv(x)


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F) -> (B, C, 2F)."""
        return self.conv(x)


def _same(channels: int) -> nn.Module:
    return nn.Conv1d(channels, channels, 3, padding=1)


def _stage(x: Tensor, time: Tensor, real: Tensor | None, resnet: nn.Module, transformers: nn.Module) -> Tensor:
    """A residual block and its transformers: (B, C, F) -> (B, C', F)."""
    x = resnet(x, time, real).transpose(1, 2)
    mask = None
    if real is not None:
        everything = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device)
        mask = attention_mask(everything, real[:, 0], torch.bfloat16)  # its lowest number is finite in float32 too
    for block in transformers.children():
        x = block(x, mask)
    return x.transpose(1, 2)


def _halved(real: Tensor | None) -> Tensor | None:
    return None if real is None else real[:, :, ::2]


def _initialised(module: nn.Module) -> None:
    """He's, as released."""
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
