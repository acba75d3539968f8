"""What of the tour is done, kept in one file, so that an interrupted tour goes on."""

import json
from pathlib import Path

from speechlm.files import write_text_atomic
from speechlm.guide.step import Step


class Record:
    """Seconds that each finished step took, by the command that it ran.

    A step whose command has changed is not done: a short tour and a whole one do not pass for each other.

    Args:
        path: of the file; made when the first step is done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def is_done(self, step: Step) -> bool:
        """Whether this very command has been finished."""
        return step.command in self.seconds

    def done(self, step: Step, seconds: float) -> None:
        """Remember it."""
        self.seconds[step.command] = round(seconds, 1)
        write_text_atomic(self.path, json.dumps(self.seconds, indent=1) + "\n")
