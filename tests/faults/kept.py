"""How the tests of a suite ended, in a file, so that one that was interrupted goes on; all of it is of one state of the code.

A JSON object a line: `code` first, then `begin` and `end` of each session with the processor time it took, how tests ended, and
what the bare stack did; `took` is how long it had been since the line before.
"""

import hashlib
import json
import os
import resource
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CODE = ("speechlm", "datamodules", "callbacks", "configs", "assets", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Ended:
    """How one test ended."""

    node: str
    outcome: str  # passed, failed or skipped
    seconds: float
    properties: dict[str, Any]


class Kept:
    """What is known so far.

    Args:
        path: of the file; nothing is kept beyond this process where there is none.

    Raises:
        ValueError: the file is of other code.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.ended, self.again = path, dict[str, Ended](), set[str]()
        self.bare: list[tuple[int, str, str]] | None = None
        self.sessions: list[float | None] = []  # processor seconds of each; None for one that was killed
        self.seconds = 0.0
        self._last = time.monotonic()
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        code = code_state()
        if lines and (before := json.loads(lines[0])["code"]) != code:
            raise ValueError(f"{path} is of other code ({before}, now {code}); results of two states are no suite")
        for line in lines[1:]:
            self._read(json.loads(line))
        if not lines:
            self._write({"code": code})
        self._note({"begin": os.getpid()})

    def add(self, one: Ended) -> None:
        """A test has ended."""
        self._note(asdict(one))

    def add_bare(self, outcomes: list[tuple[int, str, str]]) -> None:
        """The bare stack is through."""
        self._note({"bare": outcomes})

    def close(self) -> None:
        """The session is over; whatever it started has ended."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        self._note({"end": sum(one.ru_utime + one.ru_stime for one in used)})

    @property
    def processor_seconds(self) -> float | None:
        """Of all sessions; None where one of them was killed before it said so."""
        known = [one for one in self.sessions if one is not None]
        return sum(known) if len(known) == len(self.sessions) else None

    def _note(self, line: dict[str, Any]) -> None:
        now = time.monotonic()
        line, self._last = {**line, "took": round(now - self._last, 3)}, now
        self._write(line)
        self._read(line)

    def _read(self, line: dict[str, Any]) -> None:
        self.seconds += line.pop("took")
        if "begin" in line:
            self.sessions.append(None)
        elif "end" in line:
            self.sessions[-1] = line["end"]
        elif "bare" in line:
            self.bare = [(number, name, what) for number, name, what in line["bare"]]
        else:
            one = Ended(**line)
            if one.node in self.ended:
                self.again.add(one.node)
            self.ended[one.node] = one

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def code_state() -> str:
    """16 hex digits over all files that the suite is of, documentation aside."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *CODE]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    digest = hashlib.sha256()
    for name in sorted(set(filter(None, names))):
        path = ROOT / os.fsdecode(name)
        if path.is_file():
            digest.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
