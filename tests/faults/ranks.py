"""Jobs of several processes for the tests of faults: started by a zygote, killed, waited for and read."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Zygote:
    """Holds the process that forks jobs."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"

    def ask(self, **command: Any) -> Any:
        """The answer to a command."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        folder: Path,
        function: str,
        arguments: dict[str, Any],
        world_size: int = 1,
        env: dict[str, str] | None = None,
        only: list[int] | None = None,
        port: int | None = None,
    ) -> "Job":
        """Start all ranks of a job, or `only` some of them."""
        ranks = list(range(world_size)) if only is None else only
        log = folder / f"log-{time.monotonic_ns()}"
        job = {
            "function": function,
            "arguments": arguments,
            "ranks": ranks,
            "world_size": world_size,
            "log": str(log),
            "port": port or free_port(),
            "env": env or {},
        }
        return Job(self, self.ask(start=job), ranks, log)

    def close(self) -> None:
        """End the zygote."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


@dataclass
class Job:
    """Ranks that run, or have."""

    zygote: Zygote
    pids: list[int]
    ranks: list[int]
    log: Path
    started: float = field(default_factory=time.monotonic)

    def codes(self) -> list[int | None]:
        """Exit codes so far."""
        return self.zygote.ask(poll=self.pids)

    def output(self, rank: int | None = None) -> str:
        """What a rank, or all, wrote."""
        paths = [Path(f"{self.log}.{r}") for r in (self.ranks if rank is None else [rank])]
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def wait(self, seconds: float = 60.0, grace: float = 5.0) -> list[int | None]:
        """Exit codes, once all have ended; where one fails, the others are ended after a grace, as torchrun does."""
        failed_at = None
        while None in (codes := self.codes()):
            now = time.monotonic()
            if failed_at is None and any(codes):
                failed_at = now
            if now - self.started > seconds or (failed_at is not None and now - failed_at > grace):
                self.kill()
                return codes
            time.sleep(0.02)
        return codes

    def until(self, pattern: str, seconds: float = 60.0) -> None:
        """Wait for the output to say something."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.output()):
            assert time.monotonic() < end, f"{pattern!r} was not said:\n{self.output()}"
            assert None in self.codes(), self.output()
            time.sleep(0.02)

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        os.kill(self.pids[self.ranks.index(rank)], number)

    def kill(self) -> None:
        """End every rank that still runs, at once."""
        for pid, code in zip(self.pids, self.codes(), strict=True):
            if code is None:
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        while None in self.codes():
            time.sleep(0.01)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
