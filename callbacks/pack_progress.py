"""Progress of packing: a line now and then, with the time left."""

import time

from callbacks.eta import eta


class PackProgress:
    """Shows documents and ids per second, and the time left by bytes of the corpus.

    Args:
        total_bytes: of the corpus, this process's share.
        title: in front, such as "rank 3 of 8".
        every_sec: seconds between lines.
    """

    def __init__(self, total_bytes: int, title: str = "", every_sec: float = 10.0) -> None:
        self.total_bytes, self.title, self.every_sec = total_bytes, title, every_sec
        self.bytes = self.kept_bytes = self.documents = self.ids = 0
        self._began = self._said = time.monotonic()

    def kept(self, num_bytes: int) -> None:
        """So many bytes were packed by an earlier process."""
        self.kept_bytes += num_bytes

    def read(self, num_bytes: int) -> None:
        """So many more bytes are done with."""
        self.bytes += num_bytes

    def made(self, documents: int, ids: int) -> None:
        """So many more documents, of so many ids, went into rows."""
        self.documents += documents
        self.ids += ids
        if time.monotonic() - self._said >= self.every_sec:
            self._said = time.monotonic()
            print(self, flush=True)

    def eta(self) -> str:
        """Time left, by bytes."""
        return eta(time.monotonic() - self._began, self.bytes, self.total_bytes - self.kept_bytes - self.bytes)

    def __str__(self) -> str:
        elapsed = max(1e-9, time.monotonic() - self._began)
        done = (self.kept_bytes + self.bytes) / max(1, self.total_bytes)
        return (
            f"{self.title + '  ' if self.title else ''}{done:.0%}  {self.documents} documents, {self.documents / elapsed:.0f}/s  "
            f"{self.ids / 1e6:.1f} M ids, {self.ids / elapsed / 1e6:.2f} M/s  eta {self.eta()}"
        )
