"""What a save costs a training, and a resume: ours beside Lightning's own sharded save, of the same state in the same run.

    python benchmarks/checkpoint.py [--millions 50] [--rounds 5] [--folder /tmp] [--device cpu]

Weights in float32 under FSDP2 with AdamW: 12 bytes a parameter. "stall" is what the training waits at a save, "write" until the
checkpoint is on the disk, read back and marked. The two take turns, A B A B, after one round that is not counted; medians, with
the least and the most. A load puts all of it into tensors of the training, with the checksums and without, from files that are
in the page cache, where checking costs the largest share; its times are the processor's, for shared machines (OMP_NUM_THREADS=1).
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from callbacks.checkpoint import Checkpoints
from speechlm.checkpoint.form import shard_name, step_name
from speechlm.checkpoint.read import Shards
from speechlm.checkpoint.write import digest_of
from speechlm.fsdp2 import FSDP2, data_mesh
from speechlm.provenance import short_commit

WIDTH = 1024


class Strategy(FSDP2):
    """FSDP2, with the means to save as Lightning does."""

    theirs = False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Theirs copies to the host's memory."""
        return (ModelParallelStrategy if self.theirs else FSDP2).lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Theirs copies to the host's memory."""
        return (ModelParallelStrategy if self.theirs else FSDP2).optimizer_state(self, optimizer)


class Layers(L.LightningModule):
    """So many parameters, and next to nothing to compute."""

    def __init__(self, millions: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(-(-millions * 10**6 // WIDTH**2))
        )

    def configure_model(self) -> None:
        """Spread over the ranks."""
        for part in [*self.layers, self]:
            fully_shard(part, mesh=data_mesh(self.device_mesh))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One row through all."""
        for layer in self.layers:
            batch = layer(batch)
        return batch.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Two moments a parameter."""
        return torch.optim.AdamW(self.parameters(), 1e-4)


class Measure(L.Callback):
    """At every step one save of each kind."""

    def __init__(self, folder: Path, saver: Checkpoints) -> None:
        self.folder, self.saver = folder, saver
        self.seconds: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save, and load."""
        found = self.one(trainer)
        if trainer.global_step > 1:
            for name, value in found.items():
                self.seconds.setdefault(name, []).append(value)

    def one(self, trainer: L.Trainer) -> dict[str, float]:
        """Seconds of one round."""
        strategy: Any = trainer.strategy
        theirs, ours = self.folder / "theirs", self.folder / "ours" / step_name(trainer.global_step)
        strategy.theirs = True
        found = {"stall, Lightning": timed(lambda: trainer.save_checkpoint(theirs, weights_only=False))}
        strategy.theirs = False
        begin = time.perf_counter()
        found["stall"] = timed(lambda: self.saver.save(trainer))
        self.saver._finish()
        found["write"] = time.perf_counter() - begin
        wanted = {
            name: torch.empty(stored.shape, dtype=getattr(torch, stored.dtype)).fill_(0)
            for name, stored in Shards(ours).manifest.tensors.items()
            if not name.startswith("rest.")
        }
        warnings.simplefilter("ignore")
        digest_of(ours / shard_name(0))  # the write left the page cache, for its reading back
        forms = [("load", True), ("load, unchecked", False)]
        for name, verify in forms if trainer.global_step % 2 else forms[::-1]:
            reader = Shards(ours, verify=verify)
            found[name] = timed(
                lambda reader=reader: dcp.load(wanted, storage_reader=reader, no_dist=True), time.thread_time
            )
        flat = {"state_dict": strategy.lightning_module_state_dict()}
        flat |= {"optimizer_0": strategy.optimizer_state(trainer.optimizers[0])}
        found["load, Lightning"] = timed(lambda: dcp.load(flat, checkpoint_id=theirs), time.thread_time)
        shutil.rmtree(theirs)
        return found


def timed(work: Any, clock: Any = time.perf_counter) -> float:
    """Seconds of a call, everything on the GPU included."""
    begin = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begin


def main() -> None:
    """Train a few steps, save twice in each, print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--millions", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="on the disk that is to be measured")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611",
                   "TORCHELASTIC_RUN_ID": "benchmark", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # fmt: skip
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        saver = Checkpoints(f"{folder}/ours", every_n_steps=10**9, keep=1)
        measure = Measure(Path(folder), saver)
        trainer = L.Trainer(
            accelerator="gpu" if given.device == "cuda" else "cpu", devices=1, max_steps=given.rounds + 1, logger=False,
            strategy=Strategy(process_group_backend="nccl" if given.device == "cuda" else "gloo"), callbacks=[measure, saver],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=True, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(Layers(given.millions), DataLoader(torch.randn(10**4, WIDTH), batch_size=1))
        report(given, measure.seconds, torch.get_num_threads())
    dist.destroy_process_group()


def report(given: argparse.Namespace, seconds: dict[str, list[float]], threads: int) -> None:
    """Medians and ratios as one JSON."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({
        "commit": short_commit(), "torch": torch.__version__, "device": given.device, "threads": threads,
        "parameters": given.millions * 10**6, "gigabytes": round(given.millions * 12e-3, 2), "rounds": given.rounds,
        "seconds": {n: [round(middle[n], 3), round(min(v), 3), round(max(v), 3)] for n, v in seconds.items()},
        "stall, Lightning over ours": round(middle["stall, Lightning"] / middle["stall"], 1),
        "verification, share of a load": round(1 - middle["load, unchecked"] / middle["load"], 3),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
