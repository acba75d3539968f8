"""The machine a job would run on: its disk, file system, clock, limits and packages."""

import importlib.metadata
import os
import resource
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from speechlm.checks.finding import Finding, size

SLOW_WRITE = 100 * 2**20  # bytes a second; a 1.5B model's checkpoint of 18 GB would take three minutes
SLOW_FILE_SEC = 0.02  # to make, rename and remove a small file
MAX_SKEW_SEC = 2.0
MIN_OPEN_FILES = 4096
MIN_FREE = 10 * 2**30


def folder_is_writable(folder: Path) -> Iterator[Finding]:
    """The run folder can be made and written to, and files in it renamed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".doctor-{uuid.uuid4().hex}"
        probe.write_bytes(b"x")
        probe.rename(probe.with_suffix(".moved"))
        probe.with_suffix(".moved").unlink()
    except OSError as error:
        yield Finding(
            "run folder",
            "broken",
            f"{folder}: {error.strerror or error}",
            "choose another --runs_dir, or mend its rights",
        )
        return
    yield Finding("run folder", "good", f"{folder} can be written to")


def disk_is_large_enough(folder: Path, checkpoint_bytes: float, keep: int) -> Iterator[Finding]:
    """Space for the checkpoints that are kept, the one being written, and as much again for what else is logged.

    Args:
        folder: on the file system in question, or to be made there.
        checkpoint_bytes: of one checkpoint, 0 where it is not known.
        keep: checkpoints; -1 is all of them.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free, counts = shutil.disk_usage(place).free, os.statvfs(place)
    kept = 3 if keep == -1 else keep
    needed = max(MIN_FREE, checkpoint_bytes * (kept + 2))
    what = f"{size(free)} free"
    if checkpoint_bytes:
        what += f"; {kept} checkpoints of about {size(checkpoint_bytes)} and the next one need {size(needed)}"
    if free < needed:
        yield Finding(
            "disk",
            "broken",
            what,
            f"make room, choose another --runs_dir, or keep fewer with --checkpoint.keep (now {keep})",
        )
    elif keep == -1:
        yield Finding(
            "disk",
            "mind",
            f"{what}; all checkpoints are kept",
            "set --checkpoint.keep, or look at the disk now and then",
        )
    else:
        yield Finding("disk", "good", what)
    if counts.f_files and counts.f_favail < 10_000:
        yield Finding(
            "disk",
            "broken",
            f"{counts.f_favail} files can still be made",
            "remove small files; the disk has no inodes left",
        )


def file_system_is_fast(folder: Path, megabytes: int = 64) -> Iterator[Finding]:
    """How fast the run folder is written to, flushed to the disk, and how long a small file takes."""
    probe = folder / f".doctor-{uuid.uuid4().hex}"
    data = os.urandom(2**20)
    try:
        began = time.perf_counter()
        with open(probe, "wb") as file:
            for _ in range(megabytes):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        speed = megabytes * 2**20 / (time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(50):
            small = probe.with_suffix(".small")
            small.write_bytes(b"x")
            os.replace(small, probe.with_suffix(".moved"))
            probe.with_suffix(".moved").unlink()
        each = (time.perf_counter() - began) / 50
    finally:
        probe.unlink(missing_ok=True)
    found = f"writes {size(speed)}/s to the disk, {each * 1e3:.1f} ms a small file"
    if speed < SLOW_WRITE:
        yield Finding(
            "file system", "mind", found, "put --runs_dir on a faster file system: checkpoints will take long"
        )
    elif each > SLOW_FILE_SEC:
        yield Finding(
            "file system", "mind", found, "many small files are slow here: keep corpora in Shar or packed rows"
        )
    else:
        yield Finding("file system", "good", found)


def clock_is_right(folder: Path) -> Iterator[Finding]:
    """This machine's clock against that of the file server; they must agree for restarts, logs and make-like tools."""
    probe = folder / f".doctor-{uuid.uuid4().hex}"
    before = time.time()
    probe.write_bytes(b"x")
    written, after = probe.stat().st_mtime, time.time()
    probe.unlink()
    skew = max(before - written, written - after, 0.0)
    year = time.gmtime().tm_year
    if skew > MAX_SKEW_SEC:
        yield Finding(
            "clock", "mind", f"{skew:.1f} s off the file server's", "start chrony or ntpd on this machine or the server"
        )
    elif not 2025 <= year <= 2100:
        yield Finding("clock", "broken", f"says it is {year}", "set the clock: certificates will be refused")
    else:
        yield Finding("clock", "good", f"agrees with the file server's, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}")


def packages_fit(name: str = "speechlm") -> Iterator[Finding]:
    """Every package that the project needs, in a version that it was tested with."""
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires(name) or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "packages", "mind", f"{name} is not installed, only on the path", "pip install -e . (or the wheel)"
        )
        return
    wrong = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, expected {requirement.specifier or 'any'}")
    if wrong:
        yield Finding("packages", "broken", "; ".join(wrong), "pip install the project again, into this environment")
        return
    shown = ", ".join(
        f"{one} {importlib.metadata.version(one)}" for one in ("torch", "lightning", "transformers", "lhotse")
    )
    yield Finding("packages", "good", shown)


def limits_are_wide(num_workers: int) -> Iterator[Finding]:
    """Open files, shared memory for the loaders' batches, and cores for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MIN_OPEN_FILES:
        advice = f"ulimit -n {min(65_536, hard) if hard > 0 else 65_536} before the job" + (
            " (the hard limit is low, too)" if 0 < hard < MIN_OPEN_FILES else ""
        )
        yield Finding("limits", "mind", f"{soft} open files at most", advice)
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else 0
    if num_workers and shared < 2**30:
        yield Finding(
            "limits",
            "broken",
            f"{size(shared)} in /dev/shm for {num_workers} loader processes",
            "mount more (containers: --shm-size=16g), or num_workers: 0",
        )
    cores = len(os.sched_getaffinity(0))
    if num_workers >= cores > 0:
        yield Finding(
            "limits",
            "mind",
            f"{num_workers} loader processes and the training itself on {cores} cores",
            "ask for more --cpus-per-process, or fewer num_workers",
        )
    if soft >= MIN_OPEN_FILES and num_workers < cores:
        yield Finding(
            "limits",
            "good",
            f"{soft} open files, {size(shared)} shared memory, {cores} cores for {num_workers} loader processes",
        )
