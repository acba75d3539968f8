"""Kernels that compute a head and its losses at once, each used only after it gave our own gradients where it is to run."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from speechlm.nn.losses import token_losses

LossKernel = Literal["chunked", "liger"]
#: (N, D) states, (V, D) weight, (N,) labels, positions at a time, z-loss -> (N,) float32 losses.
TokenLosses = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]


def find_kernel(name: LossKernel) -> TokenLosses:
    """By its name.

    Raises:
        ValueError: there is no such kernel, or its package is not installed.
    """
    if name == "chunked":
        return token_losses
    if name != "liger":
        raise ValueError(f"speed.loss must be 'chunked' or 'liger', got {name!r}")
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused
    except ImportError as error:
        raise ValueError("speed.loss: liger needs liger-kernel: pip install 'speechlm[fast]'") from error

    def liger(states: Tensor, weight: Tensor, labels: Tensor, chunk: int = 128, z_loss: float = 0.0) -> Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            own = (states.to(dtype), weight.to(dtype), labels)
            # bias, class weights, ignored label, z-loss, smoothing, reduction, cap, z-loss apart, type of sums
            return Fused.apply(*own, None, None, -100, z_loss, 0.0, "none", None, False, torch.float32)[0].float()

    return liger


@cache
def checked_kernel(name: LossKernel, device: torch.device, dtype: torch.dtype) -> TokenLosses:
    """A kernel that was found to be right on a device, in a precision.

    Raises:
        ValueError: it gives other losses or gradients than `token_losses` does.
    """
    kernel = find_kernel(name)
    if kernel is not token_losses:
        require_equal(kernel, name, device, dtype)
    return kernel


def require_equal(kernel: TokenLosses, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Compare a kernel's losses and gradients, each position weighted differently, with those of float64.

    Its error may be twice that of `token_losses` in the same precision: both round.

    Raises:
        ValueError: it is larger; a kernel that is wrong trains, and trains wrongly.
    """
    exact = _results(token_losses, torch.device("cpu"), torch.float64)
    ours = _errors(_results(token_losses, device, dtype), exact)
    theirs = _errors(_results(kernel, device, dtype), exact)
    floor = 4 * torch.finfo(dtype).eps
    for part, mine, other in zip(("losses", "gradient of states", "gradient of weight"), ours, theirs, strict=True):
        if not other <= 2 * mine + floor:
            raise ValueError(
                f"speed.loss: {name} is wrong on {device} in {dtype}: the {part} are off by {other:.2e} of their size, our own "
                f"by {mine:.2e}; use speed.loss: chunked, or another version of the kernel"
            )


@torch.enable_grad()
def _results(kernel: TokenLosses, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(96, 64, generator=generator).bfloat16().to(device, dtype).requires_grad_()
    weight = (0.3 * torch.randn(1000, 64, generator=generator)).bfloat16().to(device, dtype).requires_grad_()
    labels = torch.randint(1000, (96,), generator=generator).to(device)
    share = torch.rand(96, generator=generator).to(device)
    with torch.autocast(device.type, enabled=False):
        losses = kernel(states, weight, labels, 32, 1e-3)
        gradients = torch.autograd.grad((losses * share).sum(), (states, weight))
    return [tensor.detach().cpu().double() for tensor in (losses, *gradients)]


def _errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((one - other).norm() / other.norm()) for one, other in zip(results, exact, strict=True)]
