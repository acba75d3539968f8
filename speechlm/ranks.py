"""Which of how many processes this one is, for jobs whose processes need not talk to each other."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """One process of a job.

    Args:
        rank: from 0.
        world_size: processes in the job.
        local_rank: among those of the same machine, which chooses the GPU.

    Raises:
        ValueError: the rank is not below the world size.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def title(self) -> str:
        """For progress bars; "" of the only process."""
        return f"rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be at least 0 and below world_size, got {self.rank} of {self.world_size}")


def find_rank(rank: int | None = None, world_size: int | None = None, environ: Mapping[str, str] | None = None) -> Rank:
    """What was said, else what torchrun or Slurm says, else the only process there is. The environment is only read.

    In a Slurm array every task of the array is a share of the job, and every process of its `srun` a share of that share.

    Raises:
        ValueError: one of rank and world size is given without the other, or they do not fit.
    """
    env = os.environ if environ is None else environ
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size are given together or not at all, got {rank} and {world_size}")
    if rank is not None and world_size is not None:
        return Rank(rank, world_size, int(env.get("LOCAL_RANK", 0)))
    if "RANK" in env and "WORLD_SIZE" in env:
        return Rank(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    return _slurm_rank(env)


def _slurm_rank(env: Mapping[str, str]) -> Rank:
    """Only inside of `srun` does SLURM_STEP_NUM_TASKS exist; a batch script is one process, whatever it asked for."""
    task, tasks, local = 0, 1, 0
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:
        task, tasks, local = (
            int(env["SLURM_PROCID"]),
            int(env["SLURM_STEP_NUM_TASKS"]),
            int(env.get("SLURM_LOCALID", 0)),
        )
    first, shares = 0, 1
    if "SLURM_ARRAY_TASK_ID" in env:
        step = int(env.get("SLURM_ARRAY_TASK_STEP", 1))
        first = (int(env["SLURM_ARRAY_TASK_ID"]) - int(env.get("SLURM_ARRAY_TASK_MIN", 0))) // step
        shares = int(env["SLURM_ARRAY_TASK_COUNT"])
    return Rank(first * tasks + task, shares * tasks, local)
