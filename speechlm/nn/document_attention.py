"""Attention that stays inside a document, for rows in which several documents follow each other.

Positions see what is before them in their own document. Three ways, the same numbers: a mask of S x S entries for torch's
scaled-dot-product attention, the plain form; FlexAttention, which skips the blocks nobody looks into and is the way on a GPU; and
documents one by one ("varlen"), which computes no pair that nobody sees: one kernel for all of them on a GPU, one call each on a
CPU. All enter any transformers model through its attention interface; its own code is untouched.

What a batch's documents are is written down once, before the first layer, in tensors whose shapes do not depend on them, so that
compiled layers are compiled once.
"""

import inspect
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

Attention = Literal["auto", "sdpa", "flex", "varlen"]
Chosen = Literal["sdpa", "flex", "varlen"]
BLOCK = 128  # positions of a block of FlexAttention
NAMES = {"sdpa": "sdpa", "flex": "documents_flex", "varlen": "documents_varlen"}  # in transformers


def choose(attention: Attention, device: torch.device) -> Chosen:
    """What `auto` means on a device.

    Raises:
        ValueError: there is no such attention.
    """
    if attention not in ("auto", *NAMES):
        raise ValueError(f"attention must be 'auto', 'sdpa', 'flex' or 'varlen', got {attention!r}")
    if attention == "auto":
        return "flex" if device.type == "cuda" else "varlen"
    return attention


def use_attention(lm: PreTrainedModel, attention: Chosen) -> None:
    """Have a transformers model attend in this way."""
    if lm.config._attn_implementation != NAMES[attention]:
        lm.set_attn_implementation(NAMES[attention])


def document_mask(doc_ids: Tensor, attention: Chosen) -> Tensor | BlockMask:
    """Who sees whom, as that attention takes it.

    Args:
        doc_ids: (B, S) by document, ascending in a row, -1 in the padding at its end, which sees itself alone.
        attention: which of the three.

    Returns:
        (B, 1, S, S) bool, True where the query (third axis) sees the key (last axis); or the blocks of it; or (1, 1, 1, N)
        int32 places of the B x S positions at which a document begins, and B x S in the end, as often as N needs.
    """
    if attention == "flex":
        return _block_mask(doc_ids)
    if attention == "varlen":
        return _beginnings(doc_ids)
    same = doc_ids[:, :, None] == doc_ids[:, None, :]
    return same.tril()[:, None]


def register(name: str, attend: Callable[[Tensor, Tensor, Tensor, Tensor, float | None], Tensor]) -> None:
    """Make a way to attend known to transformers.

    With any other mask than its own, as in generation, plain scaled-dot-product attention takes its place.

    Args:
        name: in transformers.
        attend: (B, heads, S, d) queries, keys and values, its mask, which is of int32, and the scale -> (B, S, heads, d).
    """

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if attention_mask is None or attention_mask.dtype != torch.int32:
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        if dropout:
            raise ValueError(f"{name} has no dropout, the model asks for {dropout}; choose attention: sdpa")
        return attend(query, key, value, attention_mask, scaling), None

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


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
        *listed(touching & ~full), *listed(full), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(docs.shape[1],) * 2
    )


def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, Q) number and (B, 1, Q, K) indices, the marked ones first, of (B, Q, K) marks."""
    marks = blocks[:, None].int()
    return marks.sum(-1, dtype=torch.int32), marks.argsort(dim=-1, descending=True, stable=True).int()


def _beginnings(doc_ids: Tensor) -> Tensor:
    """Filled up to a power of two, so that few shapes are seen; four axes, so that transformers hands them through."""
    begins = torch.ones_like(doc_ids, dtype=torch.bool)
    begins[:, 1:] = doc_ids[:, 1:] != doc_ids[:, :-1]
    places = begins.flatten().nonzero()[:, 0].int()
    size = max(64, 1 << len(places).bit_length())
    return F.pad(places, (0, size - len(places)), value=doc_ids.numel())[None, None, None]


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
    kernel = flex_attention if torch.compiler.is_compiling() else _kernel(query.device.type)
    out = kernel(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


def _by_document(query: Tensor, key: Tensor, value: Tensor, begins: Tensor, scaling: float | None) -> Tensor:
    by_document = _one_kernel if query.device.type == "cuda" else _one_call_each
    return by_document(query, key, value, begins.flatten(), scaling)


@torch.compiler.disable
def _one_call_each(query: Tensor, key: Tensor, value: Tensor, begins: Tensor, scaling: float | None) -> Tensor:
    length, grouped = query.shape[2], query.shape[1] != key.shape[1]
    places = begins.tolist()
    spans = [(begin, end) for begin, end in itertools.pairwise(places) if begin < end]
    parts = []
    for begin, end in spans:
        row, inside = begin // length, slice(begin % length, begin % length + end - begin)
        q, k, v = (tensor[row : row + 1, :, inside] for tensor in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts).unflatten(0, query.shape[::2])


def _one_kernel(query: Tensor, key: Tensor, value: Tensor, begins: Tensor, scaling: float | None) -> Tensor:
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    if not VARLEN_GROUPS and group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]
    settings: dict[str, Any] = {"window_size": (-1, 0)} if VARLEN_WINDOW else {"is_causal": True}
    settings |= {"enable_gqa": group > 1} if VARLEN_GROUPS else {}
    attend: Any = varlen.varlen_attn
    out = attend(*flat, begins, begins, length, length, scale=scaling, **settings)
    assert isinstance(out, Tensor)
    return out.unflatten(0, query.shape[::2])


#: How torch's kernel is told what to hide, and whether it knows groups of queries, changed from 2.10 to 2.12.
VARLEN_WINDOW, VARLEN_GROUPS = (
    name in inspect.signature(varlen.varlen_attn).parameters for name in ("window_size", "enable_gqa")
)
AttentionInterface.register(NAMES["flex"], _flex_forward)
AttentionMaskInterface.register(NAMES["flex"], ALL_MASK_ATTENTION_FUNCTIONS["flex_attention"])  # for generation
register(NAMES["varlen"], _by_document)
