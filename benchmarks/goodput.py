"""Goodput under kills: real processes, killed at random moments and started again; a simulated clock for kills every N minutes.

python benchmarks/goodput.py [--kills 4] [--every_minutes 10] [--checkpoint_every 10]

A tiny language model is trained by `speechlm.fit`; the process is killed by SIGKILL in the middle of its work, and the
identical command goes on. Measured from `metrics.jsonl`: the steps that were lost, the time from the kill to the first step
that is not a repetition's (imports, reading the checkpoint, the first batch), the same in processor time (what an idle machine
would take), what of that is imports (of a process that does nothing else), and how much longer a step with a checkpoint takes.
Out of these comes the share of the time that training goes forward when a kill comes every N minutes, at the step time of a
real run.
"""

import argparse
import contextlib
import itertools
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
import yaml

from callbacks.jsonl import read_metrics
from speechlm.provenance import short_commit

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "speech_lm" / "tiny" / "qwen2.5_1.5b.yaml"


@dataclass
class Recovery:
    """One kill."""

    lost_steps: int
    wall_sec: float
    processor_sec: float


def write_config(folder: Path, checkpoint_every: int) -> Path:
    """The tiny run, without an end."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["data"]["init_args"]["total_tokens"] = 1e9
    config["trainer"] |= {"max_steps": 1_000_000, "limit_val_batches": 0, "enable_progress_bar": False}
    config |= {"name": "run", "runs_dir": str(folder), "checkpoint": {"every_n_steps": checkpoint_every}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def start(config: Path, log: Path) -> "subprocess.Popen[bytes]":
    """The identical command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "speechlm.fit", "--config", str(config)],
            cwd=ROOT, env=environment, stdout=file, stderr=file,
        )  # fmt: skip


def steps(folder: Path) -> int:
    """The furthest step that was logged."""
    with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
        return max(read_metrics(folder / "run")["train/loss"])
    return -1


def wait_for(folder: Path, step: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until a step is logged."""
    while steps(folder) < step:
        if process.poll() is not None:
            sys.exit(log.read_text(errors="replace")[-2000:])
        time.sleep(0.05)


def processor_seconds(pid: int) -> float:
    """What a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def recover(folder: Path, config: Path, log: Path, rng: random.Random, process: "subprocess.Popen[bytes]"):  # type: ignore[no-untyped-def]
    """Kill at a random moment, start again, and wait for new work."""
    wait_for(folder, steps(folder) + rng.randint(12, 25), process, log)
    time.sleep(rng.random() * 0.3)
    killed = time.monotonic()
    process.send_signal(signal.SIGKILL)
    process.wait()
    at, lines = steps(folder), len((folder / "run" / "metrics.jsonl").read_text().splitlines())
    again = start(config, log)
    while len((folder / "run" / "metrics.jsonl").read_text().splitlines()) <= lines:
        if again.poll() is not None:
            sys.exit(log.read_text(errors="replace")[-2000:])
        time.sleep(0.02)
    wall, used = time.monotonic() - killed, processor_seconds(again.pid)
    text = (folder / "run" / "metrics.jsonl").read_text().splitlines()[lines]
    first = yaml.safe_load(text)["step"]
    return Recovery(at - first + 1, wall, used), again


def stall(folder: Path, checkpoint_every: int) -> tuple[float, float]:
    """Seconds of a plain step, and how much longer one with a checkpoint takes."""
    times = [yaml.safe_load(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    gaps = [(b["step"], b["time"] - a["time"]) for a, b in itertools.pairwise(times) if b["step"] == a["step"] + 1]
    plain = [gap for step, gap in gaps if step % checkpoint_every not in (0, 1)]
    saving = [gap for step, gap in gaps if step % checkpoint_every == 0]
    usual = statistics.median(plain)
    return usual, max(0.0, statistics.median(saving) - usual) if saving else 0.0


def goodput(minutes: float, recovery_sec: float, step_sec: float, every: int, stall_sec: float) -> float:
    """Share of the time that is new work, with a kill every so many minutes, half an interval of checkpoints lost at each."""
    period = minutes * 60
    lost = recovery_sec + step_sec * every / 2
    return max(0.0, (1 - lost / period) * (1 - stall_sec / (every * step_sec + stall_sec)))


def imports() -> float:
    """Processor seconds of a process that imports what the run does, and ends."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    modules = ["speechlm.fit", *(config[part]["class_path"].rpartition(".")[0] for part in ("model", "data"))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", f"import {', '.join(modules)}"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def checksums() -> float:
    """Gigabytes a second of one core."""
    data = np.random.default_rng(0).bytes(2**26)
    begun = time.process_time()
    for _ in range(4):
        xxhash.xxh3_64_digest(data)
    return 4 * len(data) / (time.process_time() - begun) / 1e9


def main() -> None:
    """Measure and say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--every_minutes", type=float, default=10.0)
    parser.add_argument("--checkpoint_every", type=int, default=10)
    settings = parser.parse_args()
    folder, rng = Path(tempfile.mkdtemp()), random.Random(0)
    config, log = write_config(folder, settings.checkpoint_every), folder / "log"
    process = start(config, log)
    found: list[Recovery] = []
    try:
        wait_for(folder, 5, process, log)
        for _ in range(settings.kills):
            one, process = recover(folder, config, log, rng, process)
            found.append(one)
            print(one, flush=True)
        wait_for(folder, steps(folder) + 2 * settings.checkpoint_every, process, log)
    finally:
        process.kill()
    usual, extra = stall(folder, settings.checkpoint_every)
    wall, used = (statistics.median(getattr(one, name) for one in found) for name in ("wall_sec", "processor_sec"))
    commit = short_commit()
    print(f"commit {commit}: {settings.kills} kills, a checkpoint every {settings.checkpoint_every} steps")
    print(f"lost steps {[one.lost_steps for one in found]}, at most {settings.checkpoint_every} may be")
    print(f"recovery, median: {wall:.1f} s on the clock, {used:.1f} s of a processor")
    imported = imports()
    print(f"of these, imports: {imported:.1f} s; config, checkpoint and the first batch: {used - imported:.1f} s")
    print(f"step {usual:.3f} s, a checkpoint makes it {extra:.3f} s longer; checksums {checksums():.1f} GB/s a core")
    print(f"goodput with a kill every {settings.every_minutes:g} minutes, simulated clock:")
    for name, recovery in (("as measured", wall), ("on an idle machine", used)):
        for step_sec, every in ((1.0, 1), (1.0, 5), (1.0, 20), (5.0, 1), (5.0, 5)):
            share = goodput(settings.every_minutes, recovery, step_sec, every, extra)
            print(f"  {name}, steps of {step_sec:g} s, a checkpoint every {every}: {share:.2%}")


if __name__ == "__main__":
    main()
