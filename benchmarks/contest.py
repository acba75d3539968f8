"""Contestants of a benchmark that take turns, so that whatever slows the machine down slows all of them."""

import ctypes
import threading
import time
from collections.abc import Callable, Iterable

import torch

WARM = 2  # steps of every turn that are not counted
SETTLE = 2  # rounds of a relay that are not counted: until the process has all the memory that it needs


class Clocks:
    """Seconds between steps, and useful ids of each.

    Args:
        device: whose work is timed.
        relay: on which other contestants take steps in between; without one this is alone.
    """

    def __init__(self, device: torch.device, relay: "Relay | None" = None) -> None:
        self.device, self.relay = device, relay
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.at: float | None = None

    def now(self) -> float:
        """Processor time, or the clock's when the GPU has done everything."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, tokens: int) -> None:
        """A step has ended."""
        if self.at is not None:
            self.seconds.append(self.now() - self.at)
            self.tokens.append(tokens)
        if self.relay is not None:
            self.relay.pass_on()
        self.at = self.now()

    def speed(self) -> float:
        """Useful ids per second: of the steps together, warm-up left out (padded batches differ by far)."""
        kept = slice(WARM - 1, None)
        return sum(self.tokens[kept]) / sum(self.seconds[kept])


class Relay:
    """Contestants in threads of which one runs at a time, each for one step: what slows the machine down slows all of them."""

    def __init__(self) -> None:
        self._waiting: list[threading.Thread] = []  # the first of them runs
        self._change = threading.Condition()

    def run(self, contestants: Iterable[Callable[[], None]]) -> None:
        """To the end of all.

        Raises:
            RuntimeError: one failed, of whatever.
        """
        failed: list[BaseException] = []

        def body(contestant: Callable[[], None]) -> None:
            try:
                self._wait()
                contestant()
            except BaseException as error:
                failed.append(error)
            finally:
                with self._change:
                    self._waiting.pop(0)
                    self._change.notify_all()

        self._waiting = [threading.Thread(target=body, args=(contestant,), daemon=True) for contestant in contestants]
        threads = list(self._waiting)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise RuntimeError("a contestant failed") from failed[0]

    def pass_on(self) -> None:
        """Let the next one take a step, and wait until it is this thread's turn again."""
        with self._change:
            self._waiting.append(self._waiting.pop(0))
            self._change.notify_all()
        self._wait()

    def _wait(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._waiting[0] is threading.current_thread())


def rotated(names: list[str], number: int) -> list[str]:
    """Everyone is first in some round: what a turn leaves to the next, of memory above all, is left to everyone."""
    first = number % len(names)
    return names[first:] + names[:first]


def keep_memory() -> None:
    """From here on the C library gives nothing back to the system: whoever grows first would pay for the pages of all."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # not glibc
        return
    for option, value in ((-8, 1), (-1, 2**31 - 1), (-3, 2**30)):  # arenas, threshold of trimming, threshold of mapping
        libc.mallopt(option, value)
