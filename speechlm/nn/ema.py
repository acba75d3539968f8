"""The exponential moving average of a model's trained parameters, spread over ranks as they are."""

from typing import Any

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """Averages as buffers, so that they are saved, sharded and restored with everything else.

    Lightning's own averaging copies whole modules, which FSDP2 forbids.

    Args:
        model: its parameters that are trained.
        decay: share of the old average that stays at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must be between 0 and 1, got {decay}")
        self.decay = decay
        self.restart(model)

    def restart(self, model: nn.Module) -> None:
        """Begin anew from the parameters, in the form they have now (whole, or this rank's shards)."""
        for name, parameter in trained(model).items():
            self.register_buffer(_key(name), parameter.detach().clone())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the parameters after an optimizer step."""
        parameters = trained(model)
        averages = [local(self._buffers[_key(name)]) for name in parameters]
        torch._foreach_lerp_(averages, [local(p.detach()) for p in parameters.values()], 1.0 - self.decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averages in the parameters' place."""
        for name, parameter in trained(model).items():
            local(parameter).copy_(local(self._buffers[_key(name)]))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that have a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def local(tensor: Any) -> Tensor:
    """This rank's part of a tensor that is spread over ranks; a whole one as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _key(name: str) -> str:
    return name.replace(".", "/")
