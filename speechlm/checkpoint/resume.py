"""Which checkpoint a run goes on from, agreed upon by all ranks: the newest whose every byte is as it was written."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from speechlm.checkpoint import state
from speechlm.checkpoint.form import Damaged, checkpoints_in, is_checkpoint, step_of
from speechlm.checkpoint.read import fill, read_manifest, read_rest, read_tensors, together

T = TypeVar("T")


def agree(ok: bool) -> bool:
    """Whether it is so on every rank."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ok
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    answer = torch.tensor([int(ok)], device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    return bool(answer.item())


def newest_whole(path: Path, own: Path | None, load: Callable[[Path], T]) -> T:
    """What `load` makes of a checkpoint, or of the one before it where it is damaged.

    Args:
        path: the checkpoint.
        own: the folder of this run's checkpoints; only there another may take its place.
        load: reads one; raises `Damaged` on all ranks or on none.

    Raises:
        Damaged: there is none left to try.
    """
    while True:
        try:
            return load(path)
        except Damaged as error:
            older = _before(path, own)
            if older is None:
                raise
            warnings.warn(f"passed over: {error}; the run goes on from {older.name}", stacklevel=2)
            path = older


def load(path: Path) -> dict[str, Any]:
    """A checkpoint as Lightning has it, all of it on every rank.

    Raises:
        Damaged: a file of it is not what was written, on this rank or another.
    """
    return together(lambda: state.joined(read_tensors(path), rest_of(path)), agree, path)


def rest_of(path: Path) -> dict[str, Any]:
    """What this rank remembers; in a job of another size, what the first one does."""
    manifest = read_manifest(path)
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return read_rest(path, rank if size == manifest.world_size else 0, manifest)


def load_into(path: Path, wanted: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Put a checkpoint into tensors that are spread over the ranks; the rest is returned. Nothing is touched by a damaged one.

    Raises:
        Damaged: a file of it is not what was written, on this rank or another.
    """
    rest = together(lambda: rest_of(path), agree, path)
    fill(path, wanted, agree)
    return rest


def _before(path: Path, own: Path | None) -> Path | None:
    if own is None or path.resolve().parent != own.resolve():
        return None
    listed = checkpoints_in(own)
    at = [other.name for other in listed].index(path.name) if path.name in {p.name for p in listed} else len(listed)
    return next((other for other in listed[at + 1 :] if is_checkpoint(other) and step_of(other) <= step_of(path)), None)
