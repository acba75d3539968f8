"""Where the random numbers of a process stand: of torch, of its GPU, of NumPy and of Python."""

import random
from typing import Any

import numpy as np
import torch
import xxhash


def capture() -> dict[str, Any]:
    """The state, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {"name": name, "keys": keys, "position": position, "has_gauss": has_gauss, "gauss": gauss},
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Go on from a state; one of a machine without a GPU leaves the GPU's as it is."""
    torch.set_rng_state(state["torch"])
    numpy = state["numpy"]
    np.random.set_state(
        (numpy["name"], np.asarray(numpy["keys"]), numpy["position"], numpy["has_gauss"], numpy["gauss"])
    )
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def derive(state: dict[str, Any], rank: int) -> None:
    """Begin anew for a rank of a job of another size: a function of the first rank's state and the rank."""
    seed = xxhash.xxh3_64_intdigest(state["torch"].numpy().tobytes() + rank.to_bytes(4, "little"))
    torch.manual_seed(seed & (2**63 - 1))
    np.random.seed(seed & (2**32 - 1))
    random.seed(seed)
