"""A velocity network for streams: a diffusion transformer whose frames see blocks up to their own. https://arxiv.org/abs/2212.09748

Attention reaches over the own block and so many before it, convolutions see the past only, and the noise of a frame is its own.
So a block's velocity never changes once its tokens are known, and a stream that keeps keys, values and tails of every Euler step
makes the same mel as one pass over the whole recording.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.block_window import Past, forgotten, joined, kept, sees
from speechlm.nn.causal_conv import CausalConv
from speechlm.nn.estimator import Conditions, Estimator, TimeEmbedding
from speechlm.nn.masks import attention_mask, length_mask

LayerState = tuple[Past, Tensor]  # keys and values; the tail of the convolution


class DiTState(NamedTuple):
    """What of the frames so far the ones to come can still see."""

    layers: list[LayerState]
    tail: Tensor  # (B, D, kernel - 1) of the first convolution
    blocks: Tensor  # (P,) blocks of the frames that are kept
    position: int  # of the next frame


class DiT(Estimator):
    """Transformer over frames with the time in every normalisation, block-causal.

    Args:
        num_mels: M.
        width: D.
        layers: how many.
        heads: H.
        ffn: width of the feed-forward networks.
        kernel: frames that the convolution in front of each feed-forward network sees.
        left_blocks: blocks before its own that a frame sees in each layer; null for all of them, where the cost of a stream's
            chunk grows with what came before.
        dropout: of the feed-forward networks.
    """

    causal = True

    def __init__(
        self,
        num_mels: int = 80,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        ffn: int = 2048,
        kernel: int = 7,
        left_blocks: int | None = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_mels)
        if width % heads or width // heads % 2 or (left_blocks is not None and left_blocks < 0):
            raise ValueError(
                f"width is an even multiple of heads and left_blocks at least 0, got {width}, {heads} and {left_blocks}"
            )
        self.left_blocks, self.head_width = left_blocks, width // heads
        self.time_mlp = TimeEmbedding(width, width)
        self.inward = nn.Linear(4 * num_mels, width)
        self.smooth = CausalConv(width, width, kernel, groups=width)
        self.layers = nn.ModuleList(DiTLayer(width, heads, ffn, kernel, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.outward = nn.Linear(width, num_mels)
        for still in (self.modulation, self.outward):  # at first, the velocity is 0 everywhere
            nn.init.zeros_(still.weight)
            nn.init.zeros_(still.bias)

    def forward(
        self, x_t: Tensor, t: Tensor, conditions: Conditions, mel_lens: Tensor | None, blocks: Tensor
    ) -> Tensor:
        real = None if mel_lens is None else length_mask(mel_lens, x_t.shape[2])
        v, _ = self._through(x_t, t, conditions, blocks, real)
        return v if real is None else v * real[:, None]

    def extend(
        self, x_t: Tensor, t: Tensor, conditions: Conditions, blocks: Tensor, state: DiTState | None = None
    ) -> tuple[Tensor, DiTState]:
        v, state = self._through(x_t, t, conditions, blocks, None, state)
        keep = kept(state.blocks, self.left_blocks)
        layers = [(forgotten(past, keep), tail) for past, tail in state.layers]
        return v, state._replace(layers=layers, blocks=state.blocks[len(state.blocks) - keep :])

    def _through(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions,
        own: Tensor,
        real: Tensor | None,
        state: DiTState | None = None,
    ) -> tuple[Tensor, DiTState]:
        """The velocity of frames in the blocks `own`, and keys and values of all."""
        start = state.position if state else 0
        blocks = own if state is None else torch.cat([state.blocks, own])
        allowed = sees(own, blocks, self.left_blocks)
        real = torch.ones(1, len(blocks), dtype=torch.bool, device=own.device) if real is None else real
        mask = attention_mask(allowed, real, torch.bfloat16)  # its lowest number is finite in float32 too
        turn = rotations(start, len(own), self.head_width, own.device)
        time = F.silu(self.time_mlp(t))
        x = self.inward(torch.cat([x_t, conditions.channels], dim=1).transpose(1, 2))
        smooth, tail = self.smooth.extend(x.transpose(1, 2), state.tail if state else None)
        x = x + F.silu(smooth).transpose(1, 2)
        layers = []
        for number, layer in enumerate(self.layers):
            x, layer_state = layer(x, time, turn, mask, state.layers[number] if state else None)
            layers.append(layer_state)
        shift, scale = self.modulation(time)[:, None].chunk(2, dim=2)
        v = self.outward(self.norm(x) * (1 + scale) + shift).transpose(1, 2)
        return v, DiTState(layers, tail, blocks, start + len(own))


class DiTLayer(nn.Module):
    """Attention, then a convolution and a feed-forward network; time shifts, scales and gates both.

    Args:
        width: D.
        heads: H.
        ffn: inner width of the feed-forward network.
        kernel: of the convolution.
        dropout: of the feed-forward network.
    """

    def __init__(self, width: int, heads: int, ffn: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.conv = CausalConv(width, width, kernel, groups=width)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, time: Tensor, turn: Tensor, mask: Tensor, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        """Q frames, those before them in `state`.

        Args:
            x: (B, Q, D).
            time: (B, D).
            turn: (2, Q, d / 2) `rotations` of the frames.
            mask: additive, over Q queries and all keys.
            state: of this layer.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(time)[:, None].chunk(6, dim=2)
        heard, past = self._attend(self.norm(x) * (1 + scale_a) + shift_a, turn, mask, state[0] if state else None)
        x = x + gate_a * heard
        h = self.norm(x) * (1 + scale_f) + shift_f
        smooth, tail = self.conv.extend(h.transpose(1, 2), state[1] if state else None)
        h = self.down(self.dropout(F.gelu(self.up(h + smooth.transpose(1, 2)))))
        return x + gate_f * h, (past, tail)

    def _attend(self, x: Tensor, turn: Tensor, mask: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        q, k, v = self.qkv(x).unflatten(2, (3 * self.heads, -1)).transpose(1, 2).chunk(3, dim=1)
        past = joined(past, turned(k, turn), v)
        heard = F.scaled_dot_product_attention(turned(q, turn), past.keys, past.values, attn_mask=mask.to(q.dtype))
        return self.out(heard.transpose(1, 2).flatten(2)), past


def rotations(start: int, count: int, head_width: int, device: torch.device) -> Tensor:
    """(2, count, d / 2) cosines and sines of the frames' angles, from `start` on; an hour is 310,000 frames, hence float64."""
    rate = torch.exp(torch.arange(0, head_width, 2, device=device).double() * (-math.log(10_000.0) / head_width))
    angle = torch.arange(start, start + count, device=device).double()[:, None] * rate
    return torch.stack([angle.cos(), angle.sin()]).float()


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """(B, H, Q, d) -> the same, each pair of numbers turned by its frame's angle. https://arxiv.org/abs/2104.09864"""
    (cos, sin), (a, b) = turn.to(x.dtype), x.chunk(2, dim=3)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3)
