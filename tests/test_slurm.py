"""A real Slurm on this machine: jobs of `speechlm.submit` train, are told of their limit, go on, share work, and are cancelled.

Everything is submitted at once, and each test waits for its own. Skipped where Slurm and munge are not installed
(`apt-get install --no-install-recommends slurm-wlm munge`).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from callbacks.jsonl import read_metrics
from speechlm import runs
from speechlm.cluster.batch_script import seconds_of
from speechlm.submit import SubmitCLI
from tests import fit_runs
from tests.token_corpus import NUM_CUTS, content, corpus, tokenized, write_config

ROOT = Path(__file__).parents[1]
CONTROLLER = "slurmctld", "slurmd", "munged"
STEPS, PATIENCE_SEC = 60, 400.0
#: What a run's folder may be called; every sign in it means something to a shell, to sbatch or to Slurm.
HOSTILE = "a b;$(touch pwned)'\"%j#"

pytestmark = pytest.mark.skipif(
    any(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None for name in CONTROLLER),
    reason="Slurm is not installed",
)


@dataclass
class Submitted:
    """Jobs on their way."""

    limited: str  # a training run on two processes that will hear of its limit
    array: str  # tokenization
    cancelled: str  # a training run on one process
    unbroken: subprocess.Popen[bytes]  # the limited one's twin, by torchrun
    folder: Path

    def run(self, name: str) -> Path:
        """A run folder."""
        return self.folder / HOSTILE / name


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        subprocess.run([ROOT / "tests/slurm.sh", "start", folder], check=True, timeout=60)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(ROOT)
        yield
        subprocess.run(["scancel", "--user", str(os.getuid())], check=False)
        subprocess.run([ROOT / "tests/slurm.sh", "stop", folder], check=True)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def submitted(cluster: None, cuts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    folder = tmp_path_factory.mktemp("jobs")
    lm = [
        "--config", "configs/speech_lm/tiny/glm4_9b.yaml", "--runs_dir", str(folder / HOSTILE), "--data.init_args.total_tokens",
        "null", "--trainer.max_steps", str(STEPS), "--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", "1000",
    ]  # fmt: skip
    slow = ["--trainer.callbacks+=tests.slow_steps.SlowSteps"]
    cpus = ["--gpus-per-node", "0", "--cpus-per-process", "1", "--time", "30"]
    limited = submit(*lm, *slow, "--name", "limited", *cpus, "--processes-per-node", "2", "--requeue")
    array = submit(
        "--verb", "tokenize", "--config", str(write_config(folder, cuts)), *cpus, "--array", "3%2", "--folder", str(folder)
    )  # fmt: skip
    (folder / HOSTILE).mkdir(exist_ok=True)
    dummy = fit_runs.write_config(folder / HOSTILE, runs_dir=str(folder / HOSTILE), name="cancelled")
    cancelled = submit("--config", str(dummy), "--trainer.max_steps", "1000", *slow, *cpus)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with open(folder / "torchrun.log", "wb") as log:
        unbroken = subprocess.Popen(
            [*command, "-m", "speechlm.fit", *lm, "--name", "unbroken", "--trainer.devices", "2"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield Submitted(limited, array, cancelled, unbroken, folder)
    unbroken.kill()


def submit(*arguments: str) -> str:
    job = SubmitCLI(list(arguments)).run()
    assert job is not None
    return job


def show(job: str) -> dict[str, str]:
    """What Slurm knows of a job, or of the first task of an array."""
    text = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=True).stdout
    return dict(pair.split("=", 1) for pair in text.splitlines()[0].split() if "=" in pair)


def wait_for(what: str, done: Callable[[], Any], log: Path | None = None) -> Any:
    """Poll until it is true; what the job wrote is part of the failure."""
    deadline = time.monotonic() + PATIENCE_SEC
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(0.2)
    text = "".join(path.read_text()[-3000:] for path in sorted(log.glob("*.out"))) if log else ""
    raise AssertionError(f"{what} did not happen within {PATIENCE_SEC:.0f} s\n{text}")


def steps_of(run: Path) -> int:
    """Steps in a run's log."""
    return len(read_metrics(run).get("train/loss", {})) if (run / "metrics.jsonl").exists() else 0


def test_a_cancelled_job_saves_ends_at_once_and_is_not_requeued(submitted: Submitted):
    run = submitted.run("cancelled")
    wait_for("the first steps", lambda: steps_of(run) >= 2, run / "slurm")
    subprocess.run(["scancel", submitted.cancelled], check=True)
    wait_for("the end", lambda: show(submitted.cancelled)["JobState"] == "CANCELLED", run / "slurm")
    wait_for("the end of its processes", lambda: "EndTime" in show(submitted.cancelled), run / "slurm")
    assert show(submitted.cancelled)["Restarts"] == "0"
    saved = wait_for("a checkpoint", lambda: runs.newest_checkpoint(run), run / "slurm")
    assert 2 <= saved.step < 1000
    assert abs(saved.step - steps_of(run)) <= 1  # at the step at which it was told


def test_an_array_makes_the_bytes_that_one_process_makes(submitted: Submitted, cuts: Path, tmp_path: Path):
    tasks = lambda: subprocess.run(["squeue", "-h", "-j", submitted.array], capture_output=True, text=True).stdout  # noqa: E731
    wait_for("the end of the array", lambda: not tasks().strip(), submitted.folder / "slurm")
    logs = sorted((submitted.folder / "slurm").glob(f"{submitted.array}_*.out"))
    assert [log.name.rsplit("_", 1)[1] for log in logs] == ["0.out", "1.out", "2.out"]
    assert json.loads((submitted.folder / "out/summary.json").read_text())["cuts_out"] == NUM_CUTS
    assert content(submitted.folder / "out") == content(tokenized(tmp_path, cuts))


def test_a_job_that_hears_of_its_limit_saves_and_goes_on_to_the_losses_of_an_unbroken_run(submitted: Submitted):
    run, job = submitted.run("limited"), submitted.limited
    wait_for("the first steps", lambda: steps_of(run) >= 3, run / "slurm")
    minutes = (seconds_of(show(job)["RunTime"]) + 119) // 60  # one to two from now; Slurm looks every half minute
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True)
    wait_for("the requeueing", lambda: show(job)["Restarts"] == "1", run / "slurm")
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=30"], check=True)
    saved = runs.newest_checkpoint(run)
    assert saved is not None and 3 <= saved.step < STEPS
    wait_for("the end", lambda: show(job)["JobState"] == "COMPLETED", run / "slurm")
    assert submitted.unbroken.wait(PATIENCE_SEC) == 0, (submitted.folder / "torchrun.log").read_text()[-3000:]
    losses = read_metrics(run)["train/loss"]
    assert losses == read_metrics(submitted.run("unbroken"))["train/loss"]
    assert sorted(losses) == list(range(STEPS)) and losses[STEPS - 1] < losses[0]
    starts = json.loads((run / "env.json").read_text())["starts"]
    assert len(starts) == 2 and starts[1]["resumed_from"].endswith(f"step-{saved.step:08d}.ckpt")
    assert not list(submitted.folder.rglob("pwned")) and not Path("pwned").exists()


def test_a_partition_that_is_not_there_is_refused_with_those_that_are(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = fit_runs.write_config(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        submit("--config", str(config), "--partition", "gpus", "--gpus-per-node", "0")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "invalid partition" in said and "main*: 1 nodes" in said


def test_a_second_job_of_the_same_run_waits_for_the_first(
    submitted: Submitted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = fit_runs.write_config(tmp_path)
    arguments = [
        "--config",
        str(config),
        "--gpus-per-node",
        "0",
        "--cpus-per-process",
        "1",
        "--sbatch=--begin=now+1hour",
    ]
    first = submit(*arguments)
    second = submit(*arguments)
    assert f"waits for the end of {first}" in capsys.readouterr().out
    assert "singleton" in show(second)["Dependency"]
    subprocess.run(["scancel", first, second], check=True)
