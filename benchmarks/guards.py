"""What the guards cost: the time inside of each of their hooks, as a share of the training step, in the same run.

python benchmarks/guards.py [--steps 65] [--width 384] [--layers 8]

A language model of random numbers is trained with all guards. Every hook of every guard is timed in processor time, so that other
work on the machine does not count. What a guard does every n-th step alone it does here every fifth, and its time is divided
accordingly. On a CPU nothing is hidden behind a device: the norm and the copies are a GPU's work at scale, and cost it less.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from callbacks import recompute_check
from callbacks.finite_guard import FiniteGuard
from callbacks.hang_watchdog import HangWatchdog
from callbacks.recompute_check import RecomputeCheck
from callbacks.replica_check import ReplicaCheck, hash_of, replicated
from callbacks.rewind import Rewind
from callbacks.spike_guard import SpikeGuard
from callbacks.stragglers import StragglerReport
from speechlm.provenance import short_commit
from tests.tiny_lm import random_rows, tiny_stage

OFTEN = 5  # steps, of what is done less often otherwise


class Cost:
    """Processor time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - begun

        return wrapper

    def watch(self, callback: L.Callback) -> None:
        """Time every hook of a callback."""
        for name in dir(callback):
            if name.startswith("on_") and getattr(type(callback), name) is not getattr(L.Callback, name):
                setattr(callback, name, self.timed(type(callback).__name__, getattr(callback, name)))


class Steps(L.Callback):
    """Processor time of the steps behind the first few."""

    def __init__(self, cost: Cost) -> None:
        self.cost, self.begun, self.steps = cost, 0.0, 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps += 1
        if self.steps == 5:
            self.cost.seconds.clear()
            self.begun = time.process_time()
        self.seconds = time.process_time() - self.begun


def main() -> None:
    """Train, and say what each guard took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=65)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo")
    cost, folder = Cost(), Path(tempfile.mkdtemp())
    often: dict[str, Any] = {
        "Rewind": Rewind(every=OFTEN),
        "StragglerReport": StragglerReport(OFTEN),
        "RecomputeCheck": RecomputeCheck(OFTEN),
    }
    usual = {name: type(guard)().every for name, guard in often.items()}
    guards: list[L.Callback] = [FiniteGuard(), SpikeGuard(), *often.values(), HangWatchdog()]
    for guard in guards:
        cost.watch(guard)
    for name in ("before", "after"):
        setattr(recompute_check._Twice, name, cost.timed("RecomputeCheck", getattr(recompute_check._Twice, name)))
    width = settings.width
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": settings.layers, "head_dim": 64,
             "num_attention_heads": width // 64, "num_key_value_heads": width // 64, "max_position_embeddings": 4096}  # fmt: skip
    stage = tiny_stage(folder, shape=shape, loss_chunk=512)
    rows = [random_rows(4, settings.length, seed=i) for i in range(settings.steps)]
    steps = Steps(cost)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=settings.steps, callbacks=[*guards, steps], default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(stage, DataLoader(rows, batch_size=None))  # type: ignore[arg-type]
    begun = time.process_time()
    for _, tensor in replicated(trainer, stage, buffers=False):
        hash_of(tensor)
    hashing = (time.process_time() - begun) / ReplicaCheck().every  # one rank has nobody to compare with
    counted = steps.steps - 5
    step = steps.seconds / counted
    cost.seconds["ReplicaCheck"] = hashing * counted
    for name, every in usual.items():
        cost.seconds[name] *= OFTEN / every
    commit = short_commit()
    size = sum(p.numel() for p in stage.parameters())
    print(
        f"commit {commit}, {size / 1e6:.1f} M parameters, {4 * settings.length} ids a step, {step * 1000:.0f} ms a step"
    )
    for name, seconds in [*sorted(cost.seconds.items()), ("all together", sum(cost.seconds.values()))]:
        print(f"{name:16s} {seconds / counted * 1e6:9.0f} us a step  {seconds / steps.seconds:.3%}")


if __name__ == "__main__":
    main()
