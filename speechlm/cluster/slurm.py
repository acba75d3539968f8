"""Slurm's own commands. The environment is only read."""

import re
import shutil
import subprocess
from pathlib import Path


class NoSlurm(ValueError):
    """There is no Slurm here, or it does not want the job."""


def submit(script: Path) -> str:
    """Queue a batch script; the job's id.

    Raises:
        NoSlurm: sbatch is not installed, does not answer, or refuses; with what it said, and what the partitions offer.
    """
    if shutil.which("sbatch") is None:
        raise NoSlurm(
            f"there is no sbatch on this machine; the script is in {script}; run this on a login node of the cluster, or "
            f"leave it at the script with --dry-run"
        )
    done = _run(["sbatch", "--parsable", str(script)])
    if done.returncode:
        said = re.sub(r"^sbatch: (error: )?", "", done.stderr.strip(), flags=re.MULTILINE)
        raise NoSlurm(f"sbatch refused {script}:\n  {said}\n{partitions()}".rstrip())
    return done.stdout.strip().splitlines()[-1].partition(";")[0]


def partitions() -> str:
    """What the cluster's partitions offer, a line each; empty where Slurm does not say."""
    try:
        done = _run(["sinfo", "-h", "-o", "  %P: %D nodes of %c CPUs, %m MiB, %G, up to %l"])
    except NoSlurm:
        return ""
    return f"the partitions are:\n{done.stdout.rstrip()}" if done.returncode == 0 and done.stdout.strip() else ""


def running(job_name: str) -> list[str]:
    """Ids of this user's jobs of a name that wait or run; empty where Slurm does not say."""
    if shutil.which("squeue") is None:
        return []
    try:
        done = _run(["squeue", "--me", "-h", "-o", "%A", f"--name={job_name}"])
    except NoSlurm:
        return []
    return sorted(set(done.stdout.split()))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoSlurm(f"{command[0]} does not answer ({error})") from error
