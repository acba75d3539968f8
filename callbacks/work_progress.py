"""Progress of work on recordings outside of a trainer: on a terminal a bar, elsewhere a line now and then."""

import sys
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from callbacks.eta import eta


class WorkProgress:
    """Shows how many cuts are done, how many times faster than real time, how much of the audio is padding, and the time left.

    Args:
        total: cuts of this process.
        title: in front, such as "rank 3 of 8".
        bar: draw a bar; None where there is a terminal.
        every_sec: seconds between lines where there is no bar.
    """

    def __init__(self, total: int, title: str = "", bar: bool | None = None, every_sec: float = 10.0) -> None:
        self.total, self.title, self.every_sec = total, title, every_sec
        self.found = self.done = 0  # cuts that were there already, and cuts done since
        self.seconds = self.padded_seconds = 0.0
        self._began = self._said = time.monotonic()
        self._bar = _bar(title, total) if (sys.stdout.isatty() if bar is None else bar) else None

    def __enter__(self) -> "WorkProgress":
        if self._bar is not None:
            self._bar[0].start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def kept(self, cuts: int) -> None:
        """So many cuts were done by an earlier process; told before anything is made."""
        self.found += cuts
        self._began = time.monotonic()
        self._show()

    def made(self, cuts: int, seconds: float, padded_seconds: float) -> None:
        """So many cuts were done now, of so many seconds without and with padding."""
        self.done += cuts
        self.seconds += seconds
        self.padded_seconds += padded_seconds
        self._show()

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second since the start."""
        return self.seconds / max(1e-9, time.monotonic() - self._began)

    @property
    def padding_share(self) -> float:
        """Share of the padded audio that is padding."""
        return 1.0 - self.seconds / self.padded_seconds if self.padded_seconds else 0.0

    def eta(self) -> str:
        """Time left, by cuts."""
        return eta(time.monotonic() - self._began, self.done, self.total - self.found - self.done)

    def __str__(self) -> str:
        speed = f"{self.times_real_time:.0f} x real time, {self.padding_share:.1%} padding"
        return f"{self.found + self.done}/{self.total} cuts  {self.seconds / 3600:.2f} h  {speed}"

    def _show(self) -> None:
        if self._bar is not None:
            bar, task = self._bar
            speed = f"{self.times_real_time:.0f} x real time, {self.padding_share:.1%} padding, eta {self.eta()}"
            bar.update(task, completed=self.found + self.done, speed=speed)
        elif time.monotonic() - self._said >= self.every_sec:
            self._said = time.monotonic()
            print(f"{self.title + '  ' if self.title else ''}{self}  eta {self.eta()}", flush=True)


def _bar(title: str, total: int) -> tuple[Progress, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    bar = Progress(*columns, transient=True)
    return bar, bar.add_task(title or "cuts", total=total, speed="")
