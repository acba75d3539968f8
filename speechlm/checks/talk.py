"""One of several processes that add up a tensor: `python -m speechlm.checks.talk BACKEND PORT COUNT RANK`, for the doctor."""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

FLOATS = 2**22  # 16 MiB


def talk(backend: str, port: int, count: int, rank: int) -> str:
    """Join the others, add up, compare; what was measured.

    Raises:
        RuntimeError: the sum is not what it must be, or the others do not come.
    """
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, f"tcp://127.0.0.1:{port}", timedelta(seconds=90), count, rank)
    tensor = torch.full((FLOATS,), float(rank + 1), device=device)
    dist.all_reduce(tensor)
    wrong = (tensor != count * (count + 1) / 2).sum().item()
    if wrong:
        raise RuntimeError(f"{wrong} of {FLOATS} sums are wrong")
    began = time.perf_counter()
    for _ in range(5):
        dist.all_reduce(tensor)
    float(tensor[0])
    each = (time.perf_counter() - began) / 5
    dist.destroy_process_group()
    return f"sums of {FLOATS * 4 // 2**20} MiB in {each * 1e3:.1f} ms"


if __name__ == "__main__":
    print(talk(sys.argv[1], *map(int, sys.argv[2:])))
