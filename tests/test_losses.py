"""Losses that never hold all logits are the losses, and so are their gradients, in little memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from speechlm.nn import losses
from speechlm.nn.losses import token_losses

Z = 1e-2
CHUNKS = [1, 7, 49, 50, 64]  # of 50 positions: many, and all at once


def whole(states: Tensor, weight: Tensor, labels: Tensor, z_loss: float) -> Tensor:
    """The same with all logits at once."""
    logits = F.linear(states, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, labels, reduction="none") + z_loss * logits.logsumexp(-1).square()


def problem(count: int = 50, width: int = 12, vocab: int = 90) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, weight, labels, and what each position weighs: one of them nothing, one of them less than nothing."""
    torch.manual_seed(0)
    weights = torch.rand(count)
    weights[3], weights[5] = 0.0, -0.5
    labels = torch.randint(vocab, (count,))
    labels[0], labels[1] = 0, vocab - 1
    return torch.randn(count, width), torch.randn(vocab, width), labels, weights


def results(form: Any, dtype: torch.dtype, z_loss: float, **sizes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gradient of the states, gradient of the weight, each position weighted differently, in float64."""
    states, weight, labels, weights = problem(**sizes)
    leaves = states.bfloat16().to(dtype).requires_grad_(), weight.bfloat16().to(dtype).requires_grad_()
    found = form(*leaves, labels, z_loss)
    given = torch.autograd.grad((found * weights).sum(), leaves)
    assert [gradient.dtype for gradient in given] == [dtype, dtype]
    return found.double(), given[0].double(), given[1].double()


def ours(chunk: int) -> Any:
    return lambda states, weight, labels, z_loss: token_losses(states, weight, labels, chunk, z_loss)


@pytest.mark.parametrize("z_loss", [0.0, Z])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_losses_and_gradients_are_those_of_all_logits(dtype: torch.dtype, tolerance: float, chunk: int, z_loss: float):
    found, expected = results(ours(chunk), dtype, z_loss), results(whole, dtype, z_loss)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("z_loss", [0.0, Z])
@pytest.mark.parametrize("chunk", [2, 64, 512])
def test_in_bfloat16_errors_are_those_of_its_rounding(chunk: int, z_loss: float):
    """Against float64, not larger than 1.5 times what all logits at once give in bfloat16."""
    sizes = {"count": 512, "width": 32, "vocab": 300}
    exact = results(whole, torch.float64, z_loss, **sizes)
    usual, found = (
        results(whole, torch.bfloat16, z_loss, **sizes),
        results(ours(chunk), torch.bfloat16, z_loss, **sizes),
    )
    for one, other, true in zip(found, usual, exact, strict=True):
        assert (one - true).norm() < 1.5 * (other - true).norm() < 0.05 * true.norm()


def test_many_chunks_in_bfloat16_round_a_gradient_once():
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


@pytest.mark.parametrize("chunk", [7, 50])
def test_what_is_frozen_has_no_gradient_and_the_other_keeps_its_own(chunk: int):
    states, weight, labels, weights = problem()
    expected = results(ours(chunk), torch.float32, 0.0)
    for trained, number in ((states, 1), (weight, 2)):
        own, other = (leaf.bfloat16().float() for leaf in (states, weight))
        leaf = (own if trained is states else other).requires_grad_()
        total = (token_losses(own, other, labels, chunk) * weights).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        torch.testing.assert_close(gradient.double(), expected[number])
    with torch.no_grad():
        assert not token_losses(states, weight, labels, chunk).requires_grad


@pytest.mark.parametrize("chunk", [7, 50])
def test_going_back_twice_gives_the_same_twice(chunk: int):
    states, weight, labels, weights = problem()
    total = (token_losses(states.requires_grad_(), weight.requires_grad_(), labels, chunk) * weights).sum()
    first = torch.autograd.grad(total, (states, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, (states, weight)), first, rtol=0, atol=0)


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


# -- memory ------------------------------------------------------------------------------------------------------------


class Fullest(TorchDispatchMode):
    """The most bytes that tensors made inside of it had together at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (place := tensor.untyped_storage()._cdata) not in given:
                self.made[place] = (StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes())
        self.made = {place: entry for place, entry in self.made.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.made.values()))
        return out


def extra_gib(form: Any, weight_dtype: torch.dtype, width: int, count: int = 4 * 8192, vocab: int = 168_960) -> float:
    """GiB at the fullest moment beside states, weight and their gradients, computing in bfloat16; nothing is computed."""
    with FakeTensorMode():
        states = torch.empty(count, width, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(vocab, width, dtype=weight_dtype, requires_grad=True)
        labels, weights = torch.empty(count, dtype=torch.long), torch.empty(count)
        with Fullest() as memory, torch.autocast("cpu", torch.bfloat16):
            gradients = torch.autograd.grad((form(states, weight, labels, 0.0) * weights).sum(), (states, weight))
    return (memory.most - sum(g.numel() * g.element_size() for g in gradients)) / 2**30


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 1536), (torch.float32, 1536), (torch.bfloat16, 4096)])
def test_head_and_loss_of_four_rows_of_8192_take_half_a_gib(
    dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
):
    """With a head in bfloat16, as under FSDP2, and one in float32, as on one GPU; calculated for a GPU."""
    monkeypatch.setitem(losses.PIECE, "cpu", losses.PIECE["cuda"])
    assert 0.2 < extra_gib(ours(1024), dtype, width) < 0.5
    assert extra_gib(whole, dtype, width) > 25


def test_all_positions_at_once_are_three_products_and_fewer_are_four():
    states, weight, labels, _ = problem()
    leaves = states.requires_grad_(), weight.requires_grad_()
    for chunk, products in ((50, 3), (49, 4)):
        with FlopCounterMode(display=False) as counter:
            token_losses(*leaves, labels, chunk).sum().backward()
        assert counter.get_total_flops() == products * 2 * states.numel() * len(weight)
