"""Signals to a whole process group, as Slurm sends them: loaders' workers let the training process answer, and end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from callbacks.jsonl import read_metrics
from speechlm import runs
from tests.audio_corpus import make_corpus
from tests.faults.ranks import ROOT
from tests.test_audio_data import ids_of, make_data

CONFIG = ROOT / "configs" / "speech_tokenizer" / "tiny" / "12.5hz.yaml"


def children_of(pid: int) -> list[int]:
    """Processes that a process started, and that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def wait_until(true: object, seconds: float) -> None:
    """Until a function says so."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_workers_changes_no_batch(tmp_path: Path, number: signal.Signals):
    manifest = make_corpus(tmp_path, 24)
    expected = [batch.cut_ids for batch in make_data(manifest).train_dataloader()]
    before = set(children_of(os.getpid()))
    got = iter(make_data(manifest, num_workers=2).train_dataloader())
    batches = [next(got), next(got)]  # one of each worker, so that both have begun
    workers = sorted(set(children_of(os.getpid())) - before)
    assert len(workers) == 2
    subprocess.run(
        ["kill", f"-{number.value}", *map(str, workers)], check=True
    )  # another process's signal, as Slurm's is
    batches += got
    assert [batch.cut_ids for batch in batches] == expected and len(ids_of(batches)) == 24
    wait_until(lambda: not set(workers) & set(children_of(os.getpid())), 10)


PROGRAM = """
import sys, time
from pathlib import Path
from tests.audio_corpus import make_corpus
from tests.test_audio_data import make_data
batches = iter(make_data(make_corpus(Path(sys.argv[1]), 24), num_workers=2).train_dataloader())
next(batches)
print("ready", flush=True)
time.sleep(600)
"""


def test_workers_end_with_the_process_that_they_work_for(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    workers = children_of(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    wait_until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()], 10)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_run_whose_every_process_is_told_to_stop_saves_its_step_first(
    tmp_path: Path, number: signal.Signals, code: int
):
    command = [sys.executable, "-m", "speechlm.fit", "--config", str(CONFIG), "--runs_dir", str(tmp_path)]
    command += ["--data.init_args.num_workers", "2", "--data.init_args.epochs", "null", "--trainer.max_steps", "100000"]
    command += ["--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", "100000"]
    folder, environment = tmp_path / "tiny_12.5hz", {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: process.poll() is not None or (folder / "metrics.jsonl").exists(), 180)
        wait_until(lambda: process.poll() is not None or len(children_of(process.pid)) >= 2, 60)
        os.killpg(process.pid, number)
        assert process.wait(120) == code, (tmp_path / "log").read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    newest = runs.newest_checkpoint(folder)
    assert newest is not None and newest.step == max(read_metrics(folder)["train/loss"]) + 1
    assert "exited unexpectedly" not in (tmp_path / "log").read_text()
