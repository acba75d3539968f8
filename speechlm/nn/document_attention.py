"""Attention that stays inside a document, for rows in which several documents follow each other.

Positions see what is before them in their own document. Two ways, the same numbers: a mask of S x S entries for torch's
scaled-dot-product attention, which runs everywhere, and FlexAttention, which skips the blocks nobody looks into and is the way on
a GPU. Both enter any transformers model through its attention interface; its own code is untouched.
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

Attention = Literal["auto", "sdpa", "flex"]
BLOCK = 128  # positions of a block of FlexAttention
FLEX = "documents_flex"  # its name in transformers


def choose(attention: Attention, device: torch.device) -> Literal["sdpa", "flex"]:
    """What `auto` means on a device.

    Raises:
        ValueError: there is no such attention.
    """
    if attention not in ("auto", "sdpa", "flex"):
        raise ValueError(f"attention must be 'auto', 'sdpa' or 'flex', got {attention!r}")
    if attention == "auto":
        return "flex" if device.type == "cuda" else "sdpa"
    return attention


def use_attention(lm: PreTrainedModel, attention: Literal["sdpa", "flex"]) -> None:
    """Have a transformers model attend in this way."""
    lm.set_attn_implementation(FLEX if attention == "flex" else "sdpa")


def document_mask(doc_ids: Tensor, attention: Literal["sdpa", "flex"]) -> Tensor | BlockMask:
    """Who sees whom, as that attention takes it.

    Args:
        doc_ids: (B, S) by document, ascending in a row, -1 in the padding at its end, which sees itself alone.
        attention: which of the two.

    Returns:
        (B, 1, S, S) bool, True where the query (third axis) sees the key (last axis); or the blocks of it.
    """
    if attention == "flex":
        return _block_mask(doc_ids)
    same = doc_ids[:, :, None] == doc_ids[:, None, :]
    return same.tril()[:, None]


def _block_mask(doc_ids: Tensor) -> BlockMask:
    """The blocks, from the documents at their edges: nothing of S x S is ever made."""
    docs = torch.where(doc_ids < 0, doc_ids.shape[1], doc_ids).contiguous()
    count = -(-docs.shape[1] // BLOCK)
    starts = docs[:, ::BLOCK]
    ends = torch.cat([docs[:, BLOCK - 1 :: BLOCK], docs[:, -1:]], 1)[:, :count]
    below = torch.ones(count, count, dtype=torch.bool, device=docs.device).tril()
    touching = below & (ends[:, None, :] >= starts[:, :, None])  # (B, query blocks, key blocks)
    within = (starts == ends)[:, None, :] & (ends[:, :, None] == starts[:, None, :])
    full = within & touching & below.tril(-1)
    full[:, docs.shape[1] // BLOCK :] = False  # torch takes no block for full that reaches beyond the row

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (docs[b, q] == docs[b, k])

    return BlockMask.from_kv_blocks(
        *_listed(touching & ~full), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(docs.shape[1],) * 2
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, Q) number and (B, 1, Q, K) indices, the marked ones first, of (B, Q, K) marks."""
    marks = blocks[:, None].int()
    return marks.sum(-1, dtype=torch.int32), marks.argsort(dim=-1, descending=True, stable=True).int()


@cache
def _kernel(device: str) -> Any:
    """FlexAttention; compiled where there is a kernel to compile to."""
    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


def _flex_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(B, heads, S, d) queries, keys, values -> (B, S, heads, d), as transformers calls it."""
    if dropout:
        raise ValueError(f"FlexAttention has no dropout, the model asks for {dropout}; choose attention: sdpa")
    grouped = query.shape[1] != key.shape[1]
    out = _kernel(query.device.type)(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, _flex_forward)
AttentionMaskInterface.register(FLEX, ALL_MASK_ATTENTION_FUNCTIONS["flex_attention"])  # for generation
