"""Two nodes, each with a network of its own, under torchrun; one is cut off: the job ends in time, and goes on later."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults.ranks import ROOT, Zygote
from tests.faults.runs import Named, arguments, losses, weights, write_run

ADDRESSES = ("10.213.77.1", "10.213.77.2")
WATCHDOG_SEC = 5.0
STEPS = 30


def ip(*words: str) -> bool:
    """Run `ip`; whether it did what it was asked."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces that reach each other, and nothing else, by a cable."""
    names = (f"faults-a-{os.getpid()}", f"faults-b-{os.getpid()}")
    if shutil.which("ip") is None or not ip("netns", "add", names[0]):
        pytest.skip("network namespaces are not permitted here")
    try:
        assert ip("netns", "add", names[1])
        assert ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            assert ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            assert ip("-n", name, "link", "set", "cable", "up") and ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def launch(nodes: tuple[str, str], config: Path, log: Path) -> list["subprocess.Popen[bytes]"]:
    """`torchrun` on both nodes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
    environment |= {"TP_SOCKET_IFNAME": "cable", "PYTHONWARNINGS": "ignore"}
    agents = []
    for rank, name in enumerate(nodes):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        place = [f"--node-rank={rank}", f"--master-addr={ADDRESSES[0]}", "--master-port=29511"]
        command = ["ip", "netns", "exec", name, *torchrun, *place, "-m", "speechlm.fit", "--config", str(config)]
        with open(f"{log}.{rank}", "wb") as file:
            agents.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)
            )
    return agents


def end(agents: list["subprocess.Popen[bytes]"]) -> None:
    """Leave no process behind."""
    for agent in agents:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()


def wait_for_step(folder: Path, step: int, seconds: float) -> None:
    """Until the run has logged a step."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
            if max(losses(folder)) >= step:
                return
        time.sleep(0.1)
    raise AssertionError(f"step {step} was not reached in {seconds} s")


@pytest.mark.slow
def test_a_node_that_is_cut_off_ends_the_job_in_time_and_it_goes_on(
    nodes: tuple[str, str], zygote: Zygote, tmp_path: Path
):
    watchdog: Named = (
        "callbacks.hang_watchdog.HangWatchdog",
        {"timeout_sec": WATCHDOG_SEC, "first_timeout_sec": 120.0, "start_timeout_sec": 120.0, "grace_sec": 1.0},
    )
    slow: Named = ("tests.faults.injections.Slow", {"rank": 0, "seconds": 0.2})
    config = write_run(tmp_path, watchdog, slow, steps=STEPS, num_nodes=2, devices=1)
    agents = launch(nodes, config, tmp_path / "log")
    try:
        wait_for_step(tmp_path, 8, 180)
        assert ip("-n", nodes[1], "link", "set", "cable", "down")
        cut = time.monotonic()
        codes = [agent.wait(60) for agent in agents]
        took = time.monotonic() - cut
    finally:
        end(agents)
    assert all(codes) and took < WATCHDOG_SEC + 40  # torchrun itself gives its workers 30 s to end
    said = (tmp_path / "log.0").read_text() + (tmp_path / "log.1").read_text()
    assert "made no progress" in said
    assert ip("-n", nodes[1], "link", "set", "cable", "up")
    agents = launch(nodes, config, tmp_path / "again")
    try:
        assert [agent.wait(240) for agent in agents] == [0, 0], (tmp_path / "again.0").read_text()
    finally:
        end(agents)
    unbroken = tmp_path / "unbroken"
    assert zygote.start(tmp_path, "fit", arguments(write_run(unbroken, steps=STEPS)), 2).wait(300) == [0, 0]
    assert losses(tmp_path) == losses(unbroken)
    ours, theirs = weights(tmp_path), weights(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    print(f"ended {took:.1f} s behind the cut, watchdog {WATCHDOG_SEC:.0f} s")
