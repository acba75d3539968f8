"""The block-causal encoder over speech tokens, of CosyVoice and GLM-4-Voice: a conformer without convolutions.

Modules are named as in the released weights.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.block_window import Past, forgotten, kept, sees
from speechlm.nn.masks import length_mask
from speechlm.nn.relative_attention import RelativeAttention, distance_sinusoids


class EncoderState(NamedTuple):
    """What of the tokens so far the ones to come can still see."""

    pasts: list[Past]  # one per layer
    blocks: Tensor  # (P,) blocks of the positions that are kept
    position: int  # of the next token


class TokenEncoder(nn.Module):
    """Embedded tokens to states of the same width; a token sees its own block whole and blocks before it.

    Args:
        width: D.
        heads: H.
        ffn: width of the feed-forward networks.
        layers: how many.
        block_tokens: tokens of a block; a stream goes forward by whole blocks.
        left_blocks: blocks before its own that a token sees in each layer; null for all of them, as released, where the cost
            of a stream's chunk grows with what came before.
        dropout: everywhere.
    """

    def __init__(
        self,
        width: int = 512,
        heads: int = 8,
        ffn: int = 2048,
        layers: int = 6,
        block_tokens: int = 10,
        left_blocks: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if block_tokens < 1 or (left_blocks is not None and left_blocks < 0):
            raise ValueError(f"block_tokens is at least 1 and left_blocks 0, got {block_tokens} and {left_blocks}")
        self.width, self.block_tokens, self.left_blocks = width, block_tokens, left_blocks
        self.embed = _Embed(width, dropout)
        self.encoders = nn.ModuleList(_Layer(width, heads, ffn, dropout) for _ in range(layers))
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """(B, T, D) embedded tokens and (B,) lengths -> (B, T, D)."""
        return self._through(x, length_mask(lens, x.shape[1]))[0]

    def extend(self, x: Tensor, state: EncoderState | None = None) -> tuple[Tensor, EncoderState]:
        """The same for a stream: (B, T, D) further tokens, whole blocks of them unless they are the last -> (B, T, D)."""
        x, state = self._through(x, None, state)
        keep = kept(state.blocks, self.left_blocks)
        pasts = [forgotten(past, keep) for past in state.pasts]
        return x, EncoderState(pasts, state.blocks[len(state.blocks) - keep :], state.position)

    def _through(
        self, x: Tensor, real: Tensor | None, state: EncoderState | None = None
    ) -> tuple[Tensor, EncoderState]:
        """States of further tokens, and keys and values of all."""
        device, start = x.device, state.position if state else 0
        own = torch.arange(start, start + x.shape[1], device=device) // self.block_tokens
        blocks = own if state is None else torch.cat([state.blocks, own])
        allowed = sees(own, blocks, self.left_blocks)[None, None]
        if real is not None:
            allowed = allowed & real[:, None, None, :]
        x = self.embed(x)
        distances = self.embed.dropout(distance_sinusoids(len(own), len(blocks), self.width, device))
        pasts = []
        for number, layer in enumerate(self.encoders):
            x, past = layer(x, distances, allowed, state.pasts[number] if state else None)
            pasts.append(past)
        return self.after_norm(x), EncoderState(pasts, blocks, start + len(own))


class _Embed(nn.Module):
    """The way in: linear, normalised, scaled by √D."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.dropout = nn.Dropout(dropout)
        self.scale = width**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.out(x) * self.scale)


class _FeedForward(nn.Module):
    def __init__(self, width: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(self.dropout(F.silu(self.w_1(x))))


class _Layer(nn.Module):
    """Attention and feed-forward network, each normalised first and beside a shortcut."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(width, heads, dropout)
        self.feed_forward = _FeedForward(width, ffn, dropout)
        self.norm_mha, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, distances: Tensor, allowed: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        heard, past = self.self_attn(self.norm_mha(x), distances, allowed, past)
        x = x + self.dropout(heard)
        return x + self.dropout(self.feed_forward(self.norm_ff(x))), past
