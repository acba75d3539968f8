"""Losses over large vocabularies without ever holding all logits."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

IGNORED = -100  # label of positions that no loss is taken from
#: Numbers that are exponentiated at a time: what stays in a core's cache; on a GPU, what makes kernels long.
PIECE = {"cpu": 2**19, "cuda": 2**24}
#: Logits at a time where nobody says how many: a quarter of a GiB and less in bfloat16, a third in float32.
LOGITS = 512 * 168_960


def linear_cross_entropy(states: Tensor, weight: Tensor, labels: Tensor, chunk: int = 128) -> Tensor:
    """Mean cross-entropy of `states @ weight.T` against labels, see `token_losses`.

    Positions labelled `IGNORED` cost nothing. Measured on 2 CPU cores with V = 51864: the whole training step of whisper-tiny is
    faster for it, since large allocations cost page faults.

    Args:
        states: (B, L, D).
        weight: (V, D).
        labels: (B, L) int64.
        chunk: positions at a time.
    """
    kept = labels != IGNORED
    losses = token_losses(states[kept], weight, labels[kept], chunk)
    return losses.sum() / max(1, len(losses))


def token_losses(states: Tensor, weight: Tensor, labels: Tensor, chunk: int = 128, z_loss: float = 0.0) -> Tensor:
    """Cross-entropy of every position, (N,) float32, with as many logits at a time as `chunk` positions have.

    On the way forward a chunk of positions is compared with the whole vocabulary. That gives its losses, and at once the
    gradient of its states, but for what each position will weigh, which is a factor. On the way back a slice of the vocabulary is
    compared with all positions, so that its gradient comes out of one matrix product. Nothing of the size of `weight` is summed,
    whatever the computation is done in. The logits are made twice for it, a fourth matrix product beside three; where all
    positions are one chunk they are kept instead.

    `weight` may be a parameter that only exists while its module's forward and backward run, as under FSDP2, and may be the
    embedding too.

    Args:
        states: (N, D).
        weight: (V, D).
        labels: (N,) int64 in [0, V).
        chunk: positions at a time.
        z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits from drifting (PaLM,
            arXiv 2204.02311); it is part of the losses given back.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        return _TokenLosses.apply(states.to(dtype), weight, labels, chunk, z_loss, torch.is_grad_enabled())


def chunk_of(vocab: int) -> int:
    """Positions at a time where nobody says how many."""
    return max(1, LOGITS // vocab)


class _TokenLosses(Function):
    """What is kept for the way back: the states, their gradient where each position weighs one, a number a position."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, chunk: int, z_loss: float, learns: bool
    ) -> Tensor:
        count, near = len(states), weight.to(states.dtype)
        norms, chosen = (torch.empty_like(labels, dtype=_exact(states)) for _ in range(2))
        back = torch.empty_like(states) if learns and ctx.needs_input_grad[0] else None
        logits = states.new_empty(min(chunk, count), len(weight))
        for begin in range(0, count, chunk):
            part = slice(begin, begin + chunk)
            few = torch.mm(states[part], near.T, out=logits[: count - begin])
            chosen[part] = few.gather(-1, labels[part, None])[:, 0]
            norms[part] = _to_gradient(few, labels[part], z_loss)
            if back is not None:
                torch.mm(few, near, out=back[part])
        kept = logits if learns and count <= chunk and ctx.needs_input_grad[1] else None
        ctx.save_for_backward(states, weight, labels, norms, back, kept)
        ctx.chunk, ctx.z_loss = chunk, z_loss
        return norms - chosen + z_loss * norms.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, labels, norms, back, kept = ctx.saved_tensors
        outer, weight_grad = gradients[0], None
        if ctx.needs_input_grad[1] and kept is not None:
            weight_grad = (kept.T @ _weighed(states, outer)).to(weight.dtype)
        elif ctx.needs_input_grad[1]:
            weight_grad = torch.empty_like(weight)
            size = max(1, ctx.chunk * len(weight) // len(states))
            logits = states.new_empty(len(states) * min(size, len(weight)))
            for begin in range(0, len(weight), size):
                ids = slice(begin, begin + size)
                near = weight[ids].to(states.dtype)
                few = torch.mm(states, near.T, out=logits[: len(states) * len(near)].view(len(states), len(near)))
                _to_gradient(few, labels - begin, ctx.z_loss, norms, outer)
                if weight_grad.dtype == few.dtype:
                    torch.mm(few.T, states, out=weight_grad[ids])
                else:
                    weight_grad[ids] = few.T @ states
            del logits, few
        return None if back is None else _weighed(back, outer), weight_grad, None, None, None, None


def _to_gradient(
    logits: Tensor, labels: Tensor, z_loss: float, norms: Tensor | None = None, outer: Tensor | None = None
) -> Tensor:
    """Make logits the gradient of the losses, in place, a few rows at a time in float32.

    Args:
        logits: (N, C) of all ids or of a slice of them.
        labels: (N,) columns of the targets; others are not among these ids.
        z_loss: see `token_losses`.
        norms: (N,) logarithms of the softmax's denominators, of all ids; computed where they are not given.
        outer: (N,) what each position weighs; 1 where it is not given.

    Returns:
        (N,) norms.
    """
    found = torch.empty_like(labels, dtype=_exact(logits)) if norms is None else norms
    columns, among = labels.clamp(0, logits.shape[1] - 1)[:, None], (labels >= 0) & (labels < logits.shape[1])
    outer = torch.ones_like(found) if outer is None else outer
    for rows in _pieces(logits):
        share = logits[rows].to(found.dtype)
        if norms is None:
            most = share.amax(-1, keepdim=True)
            total = share.sub_(most).exp_().sum(-1, keepdim=True)
            found[rows] = (most + total.log())[:, 0]
        else:
            share.sub_(found[rows, None]).exp_()
            total = torch.ones_like(found[rows, None])
        share *= outer[rows, None] / total * (1 + 2 * z_loss * found[rows, None])
        share.scatter_add_(-1, columns[rows], -(outer * among)[rows, None])
        if share.dtype != logits.dtype:
            logits[rows] = share
    return found


def _weighed(matrix: Tensor, by: Tensor) -> Tensor:
    """A copy of (N, D), every row times its number."""
    out = torch.empty_like(matrix)
    for rows in _pieces(matrix):
        out[rows] = matrix[rows] * by[rows, None]
    return out


def _pieces(matrix: Tensor) -> Iterator[slice]:
    """Rows of a matrix, a few at a time."""
    rows = max(1, PIECE.get(matrix.device.type, PIECE["cuda"]) // matrix.shape[1])
    return (slice(begin, begin + rows) for begin in range(0, len(matrix), rows))


def _exact(of: Tensor) -> torch.dtype:
    """In which exponentials and sums are computed."""
    return torch.promote_types(of.dtype, torch.float32)
