"""What a network keeps for its backward pass and how much it computes, without memory and without computing.

The network itself is run, on tensors that have shapes and no numbers (torch's fake tensors), so that what is found is what its
code does, whatever the architecture.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class Traced(NamedTuple):
    """Of one forward and backward pass."""

    kept: float  # bytes that were made on the way forward and wait for the backward pass
    flops: float  # operations of matrix products and convolutions, recomputation and all
    attention_flops: float  # of these, scores and sums of values, every pair counted


class Alive(TorchDispatchMode):
    """Knows every tensor that was made inside of it, by its storage."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(x)._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (place := _storage(tensor)._cdata) not in given:
                self.made[place] = (StorageWeakRef(_storage(tensor)), _storage(tensor).nbytes())
        return out

    @property
    def num_bytes(self) -> int:
        """Of what is still needed by somebody."""
        return sum(size for reference, size in self.made.values() if not reference.expired())


def traced(work: Callable[[], Tensor], mixed: bool) -> Traced:
    """Run work on fake tensors, forward and backward.

    Args:
        work: gives anything to go back from.
        mixed: compute in bfloat16.
    """
    precision: Any = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        with Alive() as alive, precision:
            out = work()
        kept = alive.num_bytes
        out.float().sum().backward()
    counts = {str(operation): float(count) for operation, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for operation, count in counts.items() if "attention" in operation or "bmm" in operation)
    return Traced(float(kept), sum(counts.values()), attention)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_back(out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(out, query, key, value)


#: Kernels that torch's counter does not know.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
