"""Weights by name: whether they are a network's, and files of them in the released form."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from speechlm.files import atomic_file, write_bytes_atomic
from speechlm.nn.safe_pt import read_pt

SHOWN = 20  # differences that an error lists


def fill(network: nn.Module, weights: dict[str, Tensor], where: str | Path, whose: str) -> None:
    """Fill a network with weights; with all of them or with none.

    Args:
        network: takes them.
        weights: by name.
        where: they were read, for the message.
        whose: they should be, for the message.

    Raises:
        ValueError: they are not the network's; the message lists what is missing, left over or of another shape.
    """
    own = network.state_dict()
    wrong = [f"missing: {name} {tuple(own[name].shape)}" for name in own.keys() - weights.keys()]
    wrong += [f"not in the model: {name} {tuple(weights[name].shape)}" for name in weights.keys() - own.keys()]
    wrong += [
        f"shape of {name}: model {tuple(own[name].shape)}, file {tuple(weights[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    if wrong:
        shown = "\n  ".join(sorted(wrong)[:SHOWN])
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(f"the weights in {where} are not those of {whose}, {len(wrong)} differences:\n  {shown}{more}")
    network.load_state_dict(weights)


def read_released(path: Path) -> dict[str, Tensor]:
    """The weights of a `.safetensors` file, or of a file of torch's, of which nothing is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can not be read safely, or holds other things than weights.
    """
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else read_pt(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # both raise whatever the bytes suggest
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{path} can not be read safely ({first})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} is no file of weights: expected names and tensors")
    return weights


def write_released(weights: dict[str, Tensor], path: Path, what: str) -> None:
    """Write weights whole or not at all: `.safetensors`, or `.pt` for the released code.

    Raises:
        ValueError: the path has another ending; says what was to be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if path.suffix == ".safetensors":
        write_bytes_atomic(path, save(weights))
    elif path.suffix == ".pt":
        with atomic_file(path) as file:
            torch.save(weights, file)
    else:
        raise ValueError(f"{what} is written to .safetensors or .pt, got {path}")
