"""One part of a corpus, such as "train", as one shuffled manifest, whatever its size, with every recording accounted for.

Training shuffles within a buffer only and a corpus is in the order of its speakers, so a manifest is written in the order of a
hash of seed and id: the same for the same recordings, in whatever order they were found. Lines wait in files by the first bits
of that hash, and one file at a time is sorted in memory.
"""

import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lhotse.cut import Cut

from datamodules.cuts import cut_line, write_lines
from speechlm.conservation import Account

BUCKETS = 64
BUCKET_BYTES = 2**22  # of a bucket that stay in memory
SAY_EVERY_SEC = 10.0
DIGEST_BYTES = 16


@dataclass
class Tally:
    """What became of the recordings of a part; `found` is counted where they are found, the rest where they end."""

    found: int = 0
    kept: int = 0
    seconds: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Add another's counts."""
        self.found += other.found
        self.kept += other.kept
        self.seconds += other.seconds
        self.left_out += other.left_out

    @property
    def account(self) -> Account:
        """Of the recordings."""
        words = ("found", f"written ({self.seconds / 3600:.2f} h)", "left out")
        return Account("recordings", self.found, self.kept, self.left_out, words)

    def __str__(self) -> str:
        return str(self.account)


class PartWriter:
    """Takes cuts in any order and writes their manifest when the `with` block ends; nothing of it where that fails.

    Args:
        path: the manifest, .jsonl or .jsonl.gz; files under its folder are named relative to it.
        seed: of the order.
        name: of the part, for messages; the manifest's where not said.
    """

    def __init__(self, path: Path, seed: int | str, name: str = "") -> None:
        self.path, self.seed = path, seed
        self.name = name or path.name.split(".")[0]
        self.tally = Tally()
        self._folder = os.path.abspath(path.parent)
        self._said = time.monotonic()

    def __enter__(self) -> "PartWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._buckets: list[IO[bytes]] = [
                stack.enter_context(tempfile.SpooledTemporaryFile(BUCKET_BYTES, dir=self._folder))
                for _ in range(BUCKETS)
            ]
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        with self._open:
            if kind is None:
                written = write_lines(self._sorted(), self.path)
                self.tally.account.require(str(self.path))
                Account("cuts", self.tally.kept, written).require(str(self.path))
                print(f"{self.name}: {self.tally}", flush=True)

    def add(self, cut: Cut) -> None:
        """A cut to be written."""
        digest = hashlib.sha256(f"{self.seed} {cut.id}".encode()).digest()[:DIGEST_BYTES]
        line = cut_line(cut, self._folder)
        bucket = self._buckets[digest[0] * BUCKETS // 256]
        bucket.write(digest + len(line).to_bytes(4, "big") + line)
        self.tally.kept += 1
        self.tally.seconds += cut.duration
        self._say()

    def leave_out(self, reason: str, count: int = 1) -> None:
        """So many recordings are not to be written, and why."""
        if count:
            self.tally.left_out[reason] += count
        self._say()

    def _say(self) -> None:
        if time.monotonic() - self._said >= SAY_EVERY_SEC:
            self._said = time.monotonic()
            print(f"{self.name}, so far: {self.tally}", flush=True)

    def _sorted(self) -> Iterator[bytes]:
        """Lines in order of their digests; the same id twice, which would be heard twice, once."""
        for bucket in self._buckets:
            last = b""
            for digest, line in sorted(_records(bucket)):
                if digest == last:
                    self.tally.kept -= 1
                    self.tally.seconds -= json.loads(line)["duration"]
                    self.leave_out("same id again")
                else:
                    yield line
                last = digest
            bucket.truncate(0)


def _records(bucket: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(digest, line) of everything in a bucket."""
    bucket.seek(0)
    while digest := bucket.read(DIGEST_BYTES):
        yield digest, bucket.read(int.from_bytes(bucket.read(4), "big"))
