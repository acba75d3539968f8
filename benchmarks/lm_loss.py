r"""Memory and time of the loss over a vocabulary of speech and text, against all logits at once, in one run.

    python benchmarks/lm_loss.py [--positions 1024] [--width 512] [--vocab 168960] [--chunk 128] [--repeats 3] \
        [--forms whole,checkpointed,ours] [--dtypes float32,bfloat16]

Forward and backward of the mean cross-entropy to states and weight: CPU seconds, and the peak of memory above what there was
before, by what Linux says of the process. Each form runs in a process of its own, one thread. "whole" is
`F.cross_entropy(states @ weight.T)`, as transformers computes it; "checkpointed" makes the logits of a chunk again in the
backward pass by torch's own checkpointing; "ours" is `token_losses`. Ratios are to the first form.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from speechlm.nn.losses import token_losses

CHUNK = [128]  # positions at a time


def whole(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(states, weight).float(), labels)


def checkpointed(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """A chunk's logits at a time, made again by checkpointing."""

    def summed(part: Tensor, own: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(part, weight).float(), own, reduction="sum")

    parts = zip(states.split(CHUNK[0]), labels.split(CHUNK[0]), strict=True)
    losses = [checkpoint(summed, part, own, use_reentrant=False) for part, own in parts]
    return torch.stack(losses).sum() / len(labels)


def ours(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The product's."""
    return token_losses(states, weight, labels, CHUNK[0]).mean()


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "whole": whole,
    "checkpointed": checkpointed,
    "ours": ours,
}


def resident(name: str) -> float:
    """GiB of memory of this process, from what Linux says of it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def measure(form: str, dtype: torch.dtype, args: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of a repeat, peak memory above the inputs and their gradients, and the gradient's norm, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    states = torch.randn(args.positions, args.width).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(args.vocab, args.width)).to(dtype).requires_grad_()
    labels = torch.randint(args.vocab, (args.positions,))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmHWM")
    seconds = []
    for _ in range(args.repeats):
        states.grad = weight.grad = None
        start = time.process_time()
        FORMS[form](states, weight, labels).backward()
        seconds.append(time.process_time() - start)
    assert weight.grad is not None and states.grad is not None
    own = sum(gradient.numel() * gradient.element_size() for gradient in (weight.grad, states.grad)) / 2**30
    return {
        "seconds": statistics.median(seconds),
        "gib": resident("VmHWM") - before - own,
        "norm": float(weight.grad.float().norm()),
    }


def main() -> None:
    """Every form in a process of its own, and the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=168_960)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--only", choices=FORMS, help="one form, as JSON: used by the benchmark itself")
    args = parser.parse_args()
    CHUNK[0] = args.chunk
    if args.only:
        print(json.dumps(measure(args.only, getattr(torch, args.dtypes), args)))
        return
    for dtype in args.dtypes.split(","):
        found: dict[str, dict[str, float]] = {}
        for form in args.forms.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--only", form, "--dtypes", dtype]
            found[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(line(dtype, form, found), flush=True)


def line(dtype: str, form: str, found: dict[str, dict[str, float]]) -> str:
    """What was measured of a form, beside the first one."""
    first, result = next(iter(found.items())), found[form]
    time_ratio, memory_ratio = result["seconds"] / first[1]["seconds"], first[1]["gib"] / max(result["gib"], 1e-3)
    return (
        f"{dtype:9} {form:13} {result['seconds']:6.2f} s ({time_ratio:.2f} of {first[0]})  {result['gib']:5.2f} GiB beside "
        f"the gradients ({first[0]} {memory_ratio:.1f} times it)  norm of the gradient {result['norm']:.6f}"
    )


if __name__ == "__main__":
    main()
