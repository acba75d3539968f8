"""Which device a process of a job works on."""

import torch


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one, and processes of one machine take turns at its GPUs.

    Args:
        name: auto, cpu, cuda or cuda:N.
        local_rank: of the process on its machine.

    Raises:
        ValueError: there is no such device.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cuda" and gpus:
        name = f"cuda:{local_rank % gpus}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{name!r} is no device; auto, cpu, cuda and cuda:N are") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= gpus):
        raise ValueError(f"{name!r} is not here; there are the CPU and {gpus} GPUs")
    return device
