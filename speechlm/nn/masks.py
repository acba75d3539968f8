"""Masks over time: which positions are real, and which may look at which."""

import torch
from torch import Tensor


def length_mask(lens: Tensor, max_len: int) -> Tensor:
    """True where a position is inside its sequence: (B,) lengths -> (B, max_len) bool."""
    return torch.arange(max_len, device=lens.device)[None, :] < lens[:, None]


def masked(x: Tensor, real: Tensor | None) -> Tensor:
    """Zeros where a mask is not True; a tensor without a mask as it is."""
    return x if real is None else x * real


def block_causal_mask(size: int, block: int | None, device: torch.device | None = None) -> Tensor:
    """(size, size) bool, True where query row may look at key column: every past position, and the own block whole.

    Args:
        size: positions.
        block: positions in a block; None lets everything see everything, 1 is plain causal attention.

    Source: the mask of the released GLM-4-Voice tokenizer, "lower triangle OR same block".
    """
    if block is None:
        return torch.ones(size, size, dtype=torch.bool, device=device)
    block_of = torch.arange(size, device=device) // block
    return block_of[None, :] <= block_of[:, None]


def attention_mask(allowed: Tensor, real: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask for scaled dot-product attention.

    Args:
        allowed: (S, S) bool, query may look at key; or (1, S) for cross-attention.
        real: (B, S) bool, key is not padding.
        dtype: of the attention's inputs.

    Returns:
        (B, 1, S or 1, S): 0 where allowed, the lowest finite number elsewhere. Rows of padded queries stay finite, so that no
        NaN can leak out of them.
    """
    allowed = allowed[None, None] & real[:, None, None, :]
    return torch.zeros(allowed.shape, dtype=dtype, device=real.device).masked_fill_(~allowed, torch.finfo(dtype).min)
