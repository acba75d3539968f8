"""Weight normalisation with the names that published vocoders use: `weight_g` for lengths, `weight_v` for directions."""

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

M = TypeVar("M", bound=nn.Module)
LENGTH, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


def normed(module: M) -> M:
    """The module with its weight as length times direction, by the first axis. Loads `weight_g` and `weight_v` too."""
    weight_norm(module)
    return module


def fold(model: nn.Module) -> None:
    """Replace every normalised weight in a model by the plain weight it stands for: faster, and no longer to be trained."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with `weight_g` and `weight_v` where torch says `parametrizations.weight.original0` and `1`."""
    return {name.replace(LENGTH, ".weight_g").replace(DIRECTION, ".weight_v"): value for name, value in state.items()}


def torch_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `published_names`."""
    return {_torch_name(name): value for name, value in state.items()}


def _torch_name(name: str) -> str:
    if name.endswith(".weight_g"):
        return name.removesuffix(".weight_g") + LENGTH
    return name.removesuffix(".weight_v") + DIRECTION if name.endswith(".weight_v") else name
