"""Which process of a job this is, whoever started it."""

import pytest

from speechlm.ranks import Rank, find_rank

SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}  # a batch script, outside of srun
SRUN = {**SBATCH, "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
ARRAY = {
    "SLURM_ARRAY_TASK_ID": "14",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_MAX": "18",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "5",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Rank(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3"}, Rank(3, 16, 3)),
        (SBATCH, Rank(0, 1, 0)),
        (SRUN, Rank(5, 8, 1)),
        (ARRAY, Rank(2, 5, 0)),
        ({**SBATCH, **ARRAY}, Rank(2, 5, 0)),
        ({**SRUN, **ARRAY}, Rank(2 * 8 + 5, 5 * 8, 1)),
        ({**SRUN, "RANK": "3", "WORLD_SIZE": "16"}, Rank(3, 16, 0)),
    ],
    ids=[
        "alone",
        "torchrun",
        "sbatch",
        "srun",
        "array",
        "array of batch scripts",
        "array of sruns",
        "torchrun in srun",
    ],
)
def test_the_rank_is_found(environ: dict[str, str], expected: Rank):
    before = dict(environ)
    assert find_rank(environ=environ) == expected
    assert environ == before


def test_what_is_said_counts_most():
    assert find_rank(1, 2, SRUN) == Rank(1, 2, 0)


def test_every_process_of_an_array_of_sruns_is_another_rank():
    tasks = [{**ARRAY, "SLURM_ARRAY_TASK_ID": str(t)} for t in (10, 12, 14, 16, 18)]
    ranks = [find_rank(environ={**SRUN, **task, "SLURM_PROCID": str(p)}).rank for task in tasks for p in range(8)]
    assert sorted(ranks) == list(range(40))


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0), (1, None), (None, 2)])
def test_a_rank_that_can_not_be_is_refused(rank: int | None, world_size: int | None):
    with pytest.raises(ValueError, match="rank"):
        find_rank(rank, world_size, {})
