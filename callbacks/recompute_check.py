"""One layer of one batch is computed twice, now and then: how a device that computes wrongly is heard."""

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle


class RecomputeCheck(L.Callback):
    """Every so many batches one layer's forward pass is done again with the same numbers; the results must have the same bits.

    Another layer each time, in turns, so that in the long run everything is looked at: a layer of thirty costs a hundredth of a
    step. Source: the rerun state machine of Megatron-LM, which does whole micro-batches again.

    Args:
        every: batches between two checks.

    Raises:
        ValueError: `every` is below 1.
        RuntimeError: the second time gave other bits; names the layer and the rank.
    """

    def __init__(self, every: int = 25) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.checked = 0
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._layers = list(layers(pl_module))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.every or not self._layers:
            return
        name, layer = self._layers[(batch_idx // self.every) % len(self._layers)]
        twice = _Twice(self, f"{name} (step {trainer.global_step}, rank {trainer.global_rank})")
        self._handles = [
            layer.register_forward_pre_hook(twice.before),
            layer.register_forward_hook(twice.after, with_kwargs=True),
        ]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._unhook()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._unhook()

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Twice:
    """Hooks of one check."""

    def __init__(self, check: RecomputeCheck, where: str) -> None:
        self.check, self.where = check, where
        self.done = False
        self.random: tuple[Tensor, Tensor | None] | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.done:
            gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
            self.random = torch.get_rng_state(), gpu

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.done or self.random is None:
            return
        self.done = True
        with torch.no_grad(), _random_numbers(*self.random), _same_buffers(module):
            again = module(*args, **kwargs)
        self.check.checked += 1
        first, second = ([leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)] for out in (output, again))
        if len(first) != len(second) or not all(map(same_bits, first, second)):
            raise RuntimeError(
                f"silent corruption: {self.where} gave other numbers when it was computed again. Resume from the newest "
                f"checkpoint without that machine; if it happens everywhere, an operation of the layer is not deterministic, "
                f"and the check is to be left out"
            )


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Members of lists of like layers, by name, the outermost lists; those that count batches as they go are left out."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            for own, layer in child.named_children():
                if any(True for _ in layer.parameters()) and not any(
                    isinstance(m, _BatchNorm) for m in layer.modules()
                ):
                    yield f"{name}.{own}", layer
        else:
            for own, layer in layers(child):
                yield f"{name}.{own}", layer


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, NaN like any other number."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


@contextlib.contextmanager
def _random_numbers(cpu: Tensor, gpu: Tensor | None) -> Iterator[None]:
    with torch.random.fork_rng(enabled=True):
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
        yield


@contextlib.contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    for buffer, value in kept:
        buffer.copy_(value)
