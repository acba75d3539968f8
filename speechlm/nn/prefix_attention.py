"""Attention over rows in which several continuations share what comes before them, which is computed once.

A row is a list of trees, written parent first: a beginning, then what may follow it, one behind the other. Each continuation sees
the beginning and itself. For every position one number says all: how far it is seen. A beginning is seen up to the end of its
last continuation, a continuation up to its own end; a plain document is a beginning without continuations. Three ways, the same
numbers: a mask of S x S entries; FlexAttention on a GPU, which skips blocks nobody looks into; and node by node on a CPU, which
computes no pair that nobody sees.
"""

import itertools
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from speechlm.nn.document_attention import BLOCK, NAMES, listed, register

PrefixAttention = Literal["auto", "sdpa", "flex", "nodes"]
BY_NODE = "prefix_nodes"  # in transformers


class Node(NamedTuple):
    """Positions begin <= i < end, and the stretches before them that they see whole."""

    begin: int
    end: int
    before: tuple[tuple[int, int], ...]


def prefix_mask(lm: PreTrainedModel, seen_until: Tensor, attention: PrefixAttention = "auto") -> Tensor | BlockMask:
    """Have a transformers model attend in this way, and give it the mask of a row.

    Args:
        lm: any causal LM.
        seen_until: (S,) the position before which a query must lie to see this one, above its own place.
        attention: "auto" is flex on a GPU and nodes elsewhere.

    Raises:
        ValueError: there is no such attention.
    """
    if attention not in ("auto", "sdpa", "flex", "nodes"):
        raise ValueError(f"attention must be 'auto', 'sdpa', 'flex' or 'nodes', got {attention!r}")
    chosen = attention if attention != "auto" else "flex" if seen_until.device.type == "cuda" else "nodes"
    name = BY_NODE if chosen == "nodes" else NAMES[chosen]
    if lm.config._attn_implementation != name:
        lm.set_attn_implementation(name)
    if chosen == "flex":
        return _block_mask(seen_until)
    if chosen == "nodes":
        return seen_until.int()[None, None, None]  # four axes, so that transformers hands it through
    places = torch.arange(len(seen_until), device=seen_until.device)
    return ((places[:, None] >= places) & (places[:, None] < seen_until))[None, None]


def nodes_of(seen_until: Tensor) -> list[Node]:
    """The stretches of a (S,) row, each with what it goes on from."""
    edges = (seen_until[1:] != seen_until[:-1]).nonzero()[:, 0] + 1
    places, until = [0, *edges.tolist(), len(seen_until)], seen_until.tolist()
    found, above = list[Node](), list[tuple[int, int]]()
    for begin, end in itertools.pairwise(places):
        above = [span for span in above if until[span[0]] > begin]
        found.append(Node(begin, end, tuple(above)))
        above.append((begin, end))
    return found


def _block_mask(seen_until: Tensor) -> BlockMask:
    """From the first and the last end in each block of keys: nothing of S x S is ever made."""
    size = len(seen_until)
    count = -(-size // BLOCK)
    padding = (0, count * BLOCK - size)
    last = F.pad(seen_until, padding, value=0).view(count, BLOCK).amax(1)
    first = F.pad(seen_until, padding, value=size).view(count, BLOCK).amin(1)
    begins = torch.arange(count, device=seen_until.device) * BLOCK
    below = torch.ones(count, count, dtype=torch.bool, device=seen_until.device).tril()
    touching = below & (last > begins[:, None])  # (query blocks, key blocks)
    full = below.tril(-1) & (first >= begins[:, None] + BLOCK)
    until = seen_until.contiguous()

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q < until[k])

    return BlockMask.from_kv_blocks(
        *listed((touching & ~full)[None]),
        *listed(full[None]),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(size, size),
    )


def _by_node(query: Tensor, key: Tensor, value: Tensor, seen_until: Tensor, scaling: float | None) -> Tensor:
    parts = [_of_node(node, query, key, value, scaling) for node in nodes_of(seen_until.flatten())]
    return torch.cat(parts, 2).transpose(1, 2)


def _of_node(node: Node, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    grouped, length = query.shape[1] != key.shape[1], node.end - node.begin
    q, k, v = (x[:, :, node.begin : node.end] for x in (query, key, value))
    mask = None
    if node.before:
        k, v = (torch.cat([*(x[:, :, b:e] for b, e in node.before), own], 2) for x, own in ((key, k), (value, v)))
        mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - length)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


register(BY_NODE, _by_node)
