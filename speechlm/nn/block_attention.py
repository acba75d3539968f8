"""Attention in which a block of positions sees itself and everything before it, without computing what the mask would hide.

A dense mask over T positions costs T² scores, of which blocks of n hide almost half: 43 % at 30 s and blocks of 4 s. One call per
block, over the keys up to that block's end, leaves them out, and needs a mask only where a recording ends inside the block.
Both forms give the same numbers up to rounding; `visible` takes the faster one.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention

from speechlm.nn.masks import attention_mask, block_causal_mask, length_mask

#: With gradients, shorter blocks lose: each call's gradient is added into keys and values of the full length. CPU, torch 2.13.
MIN_TRAINED_BLOCK = 128

AttentionForm = Literal["auto", "dense", "blocks"]


class Seen(Protocol):
    """What a layer's queries look at."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, d) queries, already scaled, keys and values -> (B, H, T, d)."""
        ...


class BlockAttention(nn.Module):
    """Whisper's self-attention with the choice of what is seen left to the caller; the weights keep their names.

    Args:
        attention: transformers' attention; its projections are taken over.

    Raises:
        ValueError: it drops attention weights in training, which no published Whisper does.
    """

    def __init__(self, attention: WhisperAttention) -> None:
        super().__init__()
        if attention.dropout:
            raise ValueError(f"attention_dropout must be 0 in the checkpoint's config.json, got {attention.dropout}")
        self.num_heads, self.scaling = attention.num_heads, attention.scaling
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out_proj = attention.out_proj

    def forward(self, hidden_states: Tensor, attention_mask: Seen, **unused: object) -> tuple[Tensor, None]:
        """(B, T, D) -> (B, T, D). The argument's names are those that transformers' layer calls it with."""
        q = self._heads(self.q_proj(hidden_states) * self.scaling)
        k, v = self._heads(self.k_proj(hidden_states)), self._heads(self.v_proj(hidden_states))
        out = attention_mask.attend(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Masked(NamedTuple):
    """One call under a dense mask; without a mask, everything sees everything."""

    mask: Tensor | None  # (B, 1, T, T), or (B, 1, 1, T)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=1.0)


class Block(NamedTuple):
    """Queries of one block."""

    start: int
    end: int
    mask: Tensor | None  # (B, 1, 1, end): where a recording ends inside the block


class Blocks(NamedTuple):
    """One call per block, over the keys up to its end."""

    blocks: Sequence[Block]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = [
            F.scaled_dot_product_attention(q[:, :, b:e], k[:, :, :e], v[:, :, :e], attn_mask=mask, scale=1.0)
            for b, e, mask in self.blocks
        ]
        return torch.cat(seen, dim=2)


class KeyValueCache:
    """A layer's keys and values of finished blocks; the block at hand sees them and itself, and joins them.

    Args:
        max_positions: of a whole recording; room for all of them is taken at the first block, so that memory stays flat.
    """

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions
        self.length = 0
        self.unseen = 0  # positions at the end of the block at hand that nothing looks at
        self.keys: Tensor | None = None  # (B, H, max_positions, d)
        self.values: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.length + k.shape[2]
        if self.keys is None or self.values is None:
            self.keys, self.values = (x.new_empty(*x.shape[:2], self.max_positions, x.shape[3]) for x in (k, v))
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = k, v
        self.length = end
        seen = end - self.unseen
        return F.scaled_dot_product_attention(q, self.keys[:, :, :seen], self.values[:, :, :seen], scale=1.0)


def visible(lens: Tensor, size: int, block: int | None, dtype: torch.dtype, form: AttentionForm = "auto") -> Seen:
    """What positions see: all that is before their block and the block whole, as far as it is real.

    Args:
        lens: (B,) real positions.
        size: positions T of the batch.
        block: positions in a block; None lets everything see everything.
        dtype: of the attention's inputs.
        form: "auto" takes the faster one. On CUDA that is "dense" until somebody has measured it there.
    """
    if form == "dense" or (form == "auto" and not _blocks_pay(size, block, lens.device)):
        allowed = block_causal_mask(size, block, lens.device)
        return Masked(attention_mask(allowed, length_mask(lens, size), dtype))
    ends = lens.tolist()
    starts = range(0, size, block or size)
    spans = [(start, min(size, start + (block or size))) for start in starts]
    return Blocks([Block(start, end, _ends_inside(lens, ends, start, end, dtype)) for start, end in spans])


def _blocks_pay(size: int, block: int | None, device: torch.device) -> bool:
    if device.type != "cpu":
        return False
    if block is None or size <= block or not torch.is_grad_enabled():
        return True
    return block >= MIN_TRAINED_BLOCK


def _ends_inside(lens: Tensor, ends: list[int], start: int, end: int, dtype: torch.dtype) -> Tensor | None:
    """Behind the block of its end, what a recording's padding sees is of no account, so nothing need be hidden there."""
    if not any(start < length < end for length in ends):
        return None
    everything = torch.ones(1, end, dtype=torch.bool, device=lens.device)
    return attention_mask(everything, length_mask(lens, end), dtype)
