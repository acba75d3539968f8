"""Chunked losses are the losses, and so are their gradients."""

import pytest
import torch
import torch.nn.functional as F

from speechlm.nn.losses import token_losses

Z = 1e-2


def whole(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, z_loss: float) -> torch.Tensor:
    """The same with all logits at once."""
    logits = F.linear(states, weight).float()
    return F.cross_entropy(logits, labels, reduction="none") + z_loss * logits.logsumexp(-1).square()


@pytest.mark.parametrize("z_loss", [0.0, Z])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_losses_of_chunks_have_the_values_and_gradients_of_the_whole(chunk: int, z_loss: float):
    torch.manual_seed(0)
    states, weight = torch.randn(50, 12, requires_grad=True), torch.randn(90, 12, requires_grad=True)
    labels, weights = torch.randint(90, (50,)), torch.rand(50)
    ours = token_losses(states, weight, labels, chunk, z_loss)
    theirs = whole(states, weight, labels, z_loss)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((ours * weights).sum(), (states, weight))
    theirs = torch.autograd.grad((theirs * weights).sum(), (states, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_many_chunks_in_bfloat16_sum_their_gradients_in_float32():
    torch.manual_seed(0)
    states, weight = torch.randn(512, 8).bfloat16(), torch.randn(20, 8).bfloat16().requires_grad_()
    labels = torch.randint(20, (512,))
    exact = weight.detach().double().requires_grad_()
    F.cross_entropy(F.linear(states.double(), exact), labels, reduction="sum").backward()
    token_losses(states, weight, labels, chunk=2).sum().backward()
    assert weight.grad is not None and exact.grad is not None
    error = (weight.grad - exact.grad).norm() / exact.grad.norm()
    assert (
        weight.grad.dtype == torch.bfloat16 and error < 0.004
    )  # of one rounding; 256 of them come to ten times as much


def test_no_positions_are_no_loss_and_a_gradient_of_zero():
    weight = torch.randn(5, 4, requires_grad=True)
    token_losses(torch.zeros(0, 4), weight, torch.zeros(0, dtype=torch.long)).sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_autocast_decides_the_precision():
    states, weight = torch.randn(6, 4), torch.randn(5, 4)
    labels = torch.arange(5).repeat(2)[:6]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = token_losses(states, weight, labels)
    expected = token_losses(states.bfloat16(), weight.bfloat16(), labels)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0)
    assert rounded.dtype == torch.float32
