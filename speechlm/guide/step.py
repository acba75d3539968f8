"""One command of the tour."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What is done, and how the same is done by hand and at scale.

    Args:
        title: what it is for.
        verb: module with the command, such as speechlm.fit.
        words: its arguments.
        main: the command itself, in this process.
        at_scale: the command for a corpus and a cluster.
        run: name of the run that it trains, "" where it trains nothing.
        learnt: measure of the run whose first and last value say what was learnt, lower is better; its first held-out loss where
            empty.
    """

    title: str
    verb: str
    words: tuple[str, ...]
    main: Callable[[list[str]], object]
    at_scale: str = ""
    run: str = ""
    learnt: str = ""

    @property
    def command(self) -> str:
        """As it would be typed."""
        return shlex.join(["python", "-m", self.verb, *self.words])

    def call(self) -> None:
        """Run it here."""
        self.main(list(self.words))
