"""Losses over large vocabularies without ever holding all logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

IGNORED = -100  # label of positions that no loss is taken from


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
    """Cross-entropy of every position, (N,) float32, with the logits of `chunk` positions at a time.

    The logits of a chunk are made again in the backward pass: one more matrix product, and memory for `chunk` x V numbers
    instead of N x V. What the chunks add to the gradient of `weight` is summed in float32, whatever the computation is done in.
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
        return _TokenLosses.apply(states.to(dtype), weight, labels, chunk, z_loss)


class _TokenLosses(Function):
    """Keeps one number per position, the logarithm of the softmax's denominator, for the way back."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, chunk: int, z_loss: float) -> Tensor:
        ctx.weight_dtype, weight = (
            weight.dtype,
            weight.to(states.dtype),
        )  # so that its gradient is never rounded on the way
        norms, targets = states.new_empty(len(states), dtype=torch.float32), []
        for begin in range(0, len(states), chunk):
            logits = F.linear(states[begin : begin + chunk], weight).float()
            norms[begin : begin + chunk] = logits.logsumexp(-1)
            targets.append(logits.gather(-1, labels[begin : begin + chunk, None])[:, 0])
        ctx.save_for_backward(states, weight, labels, norms)
        ctx.chunk, ctx.z_loss = chunk, z_loss
        return norms - torch.cat([norms[:0], *targets]) + z_loss * norms.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, labels, norms = ctx.saved_tensors
        states_grad = torch.empty_like(states)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for begin in range(0, len(states), ctx.chunk):
            part = slice(begin, begin + ctx.chunk)
            outer = gradients[0][part, None]
            share = F.linear(states[part], weight).float().sub_(norms[part, None]).exp_()  # softmax
            share *= outer * (1 + 2 * ctx.z_loss * norms[part, None])
            share.scatter_add_(-1, labels[part, None], -outer)
            logits_grad = share.to(weight.dtype)
            torch.mm(logits_grad, weight, out=states_grad[part])
            if weight_grad is not None:
                _add_product(weight_grad, logits_grad.T, states[part])
        return states_grad, None if weight_grad is None else weight_grad.to(ctx.weight_dtype), None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to a float32 sum."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
