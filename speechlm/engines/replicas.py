"""Which of several servers gets the next request, and what happens when one stops answering."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

BACKOFF_SEC = (0.5, 30.0)  # after the first failure, and at most


class NoServer(RuntimeError):
    """No server has answered for longer than anyone wants to wait."""


@dataclass
class Replica:
    """One server, as seen from here."""

    url: str
    busy: int = 0  # requests it is working on
    failures: int = 0  # since it last answered
    closed_until: float = 0.0  # monotonic seconds
    last_error: str = ""


class Replicas:
    """Hands out the least busy server that answers, and keeps one that failed out of use for ever longer.

    Thread-safe. A server that failed is asked for its health before it gets work again.

    Args:
        urls: addresses.
        per_replica: requests one server works on at a time.
        healthy: asks a server; True where it can take work.
        patience_sec: how long all servers may be away together.
    """

    def __init__(
        self, urls: list[str], per_replica: int, healthy: Callable[[str], bool], patience_sec: float = 300.0
    ) -> None:
        self.replicas = [Replica(url) for url in urls]
        self.per_replica, self.healthy, self.patience_sec = per_replica, healthy, patience_sec
        self._changed = threading.Condition()
        self._last_answer = time.monotonic()

    def take(self) -> Replica:
        """Wait for a server with room.

        Raises:
            NoServer: none has answered for `patience_sec`.
        """
        while True:
            with self._changed:
                replica = self._with_room()
                if replica is None:
                    self._check_patience()
                    self._changed.wait(0.2)
                    continue
                replica.busy += 1
            if not replica.failures or self.healthy(replica.url):
                return replica
            self.failed(replica, "its health check does not answer")

    def answered(self, replica: Replica) -> None:
        """The request is done."""
        with self._changed:
            if replica.failures:
                log.warning("%s answers again", replica.url)
            replica.busy, replica.failures = replica.busy - 1, 0
            self._last_answer = time.monotonic()
            self._changed.notify_all()

    def failed(self, replica: Replica, error: str) -> None:
        """The request came to nothing for a reason that is the server's."""
        with self._changed:
            replica.busy, replica.failures, replica.last_error = replica.busy - 1, replica.failures + 1, error
            if replica.failures == 1:
                log.warning(
                    "%s does not answer (%s); it is asked again, and without any server for %g s the run ends",
                    replica.url,
                    error,
                    self.patience_sec,
                )
            first, longest = BACKOFF_SEC
            replica.closed_until = time.monotonic() + min(longest, first * 2 ** (replica.failures - 1))
            self._changed.notify_all()

    def _with_room(self) -> Replica | None:
        now = time.monotonic()
        free = [
            replica for replica in self.replicas if replica.busy < self._room(replica) and replica.closed_until <= now
        ]
        return min(free, key=lambda replica: (replica.failures, replica.busy), default=None)

    def _room(self, replica: Replica) -> int:
        return 1 if replica.failures else self.per_replica  # one request finds out whether it is back

    def _check_patience(self) -> None:
        waited = time.monotonic() - self._last_answer
        if waited > self.patience_sec and all(replica.failures for replica in self.replicas):
            lines = "".join(f"\n  {replica.url}: {replica.last_error}" for replica in self.replicas)
            raise NoServer(f"no server has answered for {waited:.0f} s:{lines}")
