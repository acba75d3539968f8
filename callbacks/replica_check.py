"""Replicas that should be the same are compared, bit by bit: how silent corruption is heard."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor


class ReplicaCheck(L.Callback):
    """Compares a hash of every weight and moment over the ranks that hold copies of them.

    Ranks that train the same weights (DDP) are to have the same bits; a flipped one, or an update that one rank missed, makes
    them differ, and no loss shows it for a long time. It is looked for before every checkpoint whose interval `every` divides, as
    checkpoints are written behind all other callbacks. Weights that are spread over ranks (FSDP) have no copies to compare; what
    guards those is `RecomputeCheck`, and the checksums of checkpoints.

    Args:
        every: optimizer steps between comparisons.
        buffers: compare buffers too, such as codebooks; not for modules that count per rank.

    Raises:
        ValueError: `every` is below 1.
        RuntimeError: ranks differ; names them and the tensors.
    """

    def __init__(self, every: int = 100, buffers: bool = False) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every, self.buffers = every, buffers
        self._checked = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that begins with different weights is found at once."""
        self._checked = trainer.global_step
        self._check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self._checked + self.every:
            self._checked = trainer.global_step
            self._check(trainer, pl_module)

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        named = list(replicated(trainer, pl_module, self.buffers))
        if not named:
            return
        own = torch.stack([hash_of(tensor) for _, tensor in named])
        hashes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(hashes, own)
        table = torch.stack(hashes)  # (R, P)
        if not bool((table == table[0]).all()):
            self._refuse(table.cpu(), [name for name, _ in named], trainer.global_step)

    def _refuse(self, table: Tensor, names: list[str], step: int) -> None:
        wrong = [names[i] for i in (table != table[0]).any(0).nonzero()[:, 0].tolist()]
        rows = [tuple(row) for row in table.tolist()]
        common, count = Counter(rows).most_common(1)[0]
        odd = [rank for rank, row in enumerate(rows) if row != common]
        who = f"rank {', '.join(map(str, odd))} differs from the other {count}" if count > 1 else "the ranks all differ"
        raise RuntimeError(
            f"silent corruption: at step {step} {who} in {len(wrong)} tensors ({', '.join(wrong[:5])}), where all must have the "
            f"same bits. Resume from the newest checkpoint, without that machine"
        )


def replicated(trainer: L.Trainer, module: L.LightningModule, buffers: bool) -> Iterator[tuple[str, Tensor]]:
    """Tensors that every rank holds a copy of, by name: weights, moments and, where asked for, buffers."""
    for name, parameter in module.named_parameters():
        if not hasattr(parameter, "to_local"):
            yield name, parameter.detach()
            for optimizer in trainer.optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.ndim:
                        yield f"{key} of {name}", value
    for name, buffer in module.named_buffers() if buffers else ():
        yield name, buffer


def hash_of(tensor: Tensor) -> Tensor:
    """Scalar int64 that no single flipped bit leaves as it is: the exclusive or of all elements."""
    if not tensor.numel():
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    return torch.hash_tensor(tensor).view(torch.int64)
