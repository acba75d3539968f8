"""What of the tour is done, kept in one file, so that an interrupted tour goes on."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from speechlm.files import write_text_atomic
from speechlm.guide.step import Step


class Record:
    """Seconds that each finished step took, by the command that it ran and what its config said then.

    A step whose command or config has changed is not done: a short tour and a whole one do not pass for each other.

    Args:
        path: of the file; made when the first step is done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def is_done(self, step: Step) -> bool:
        """Whether this very command has been finished, with this config."""
        return _key(step) in self._seconds

    def seconds(self, step: Step) -> float:
        """That it took; 0 if it is not done."""
        return self._seconds.get(_key(step), 0.0)

    def done(self, step: Step, seconds: float) -> None:
        """Remember it."""
        self._seconds[_key(step)] = round(seconds, 1)
        write_text_atomic(self.path, json.dumps(self._seconds, indent=1) + "\n")

    def require_order(self, steps: Sequence[Step]) -> None:
        """What is done was made by the steps before it as they are now.

        Raises:
            ValueError: a step is not done, and a later one is: its inputs are another step's.
        """
        done = [self.is_done(step) for step in steps]
        first = done.index(False) if False in done else len(done)
        later = [number for number in range(first, len(done)) if done[number]]
        if later:
            raise ValueError(
                f"step {first + 1}, {steps[first].title!r}, is to be run, but steps {', '.join(str(n + 1) for n in later)} were "
                f"done after another form of it: its command or its config has changed since. Take another --out, or delete "
                f"{self.path.parent} to begin again"
            )


def _key(step: Step) -> str:
    """The command, and a digest of the configs that it names."""
    named = [Path(value) for word, value in zip(step.words, step.words[1:], strict=False) if word == "--config"]
    digest = hashlib.sha256()
    for config in named:
        digest.update(config.read_bytes() if config.is_file() else b"")
    return f"{step.command}  # {digest.hexdigest()[:12]}" if named else step.command
