"""Attention by blocks: a position sees its own block whole, and so many blocks before it. What streams are made of."""

from typing import NamedTuple

import torch
from torch import Tensor


class Past(NamedTuple):
    """Keys and values that positions to come can still see."""

    keys: Tensor  # (B, H, P, d)
    values: Tensor  # (B, H, P, d)


def sees(query_blocks: Tensor, key_blocks: Tensor, left_blocks: int | None) -> Tensor:
    """(Q,) and (K,) numbers of blocks -> (Q, K) bool, True where the query may look at the key.

    Args:
        query_blocks: in which block each query lies.
        key_blocks: in which block each key lies.
        left_blocks: blocks before its own that a query sees; None for all of them.
    """
    distance = query_blocks[:, None] - key_blocks[None, :]
    seen = distance >= 0
    return seen if left_blocks is None else seen & (distance <= left_blocks)


def joined(past: Past | None, keys: Tensor, values: Tensor) -> Past:
    """Keys and values behind those that were kept."""
    if past is None:
        return Past(keys, values)
    return Past(torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2))


def kept(all_blocks: Tensor, left_blocks: int | None) -> int:
    """How many of the last positions the next block can see; (K,) numbers of blocks, the last one complete."""
    if left_blocks is None or len(all_blocks) == 0:
        return len(all_blocks)
    return int((all_blocks > all_blocks[-1] - left_blocks).sum())


def forgotten(past: Past, keep: int) -> Past:
    """The last `keep` positions."""
    start = past.keys.shape[2] - keep
    return Past(past.keys[:, :, start:], past.values[:, :, start:])
