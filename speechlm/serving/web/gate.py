"""How many may do something at once; who finds no room is told at once and does not wait."""

from collections.abc import Iterator
from contextlib import contextmanager

from speechlm.serving.web.errors import Refused


class Gate:
    """Counts who is inside. For one event loop; it has no lock.

    Args:
        room: how many there is room for.
        what: what they do, for the message.
    """

    def __init__(self, room: int, what: str) -> None:
        self.room, self.what, self.inside = room, what, 0

    def enter(self) -> None:
        """Go in.

        Raises:
            Refused: with 429.
        """
        if self.inside >= self.room:
            raise Refused(
                429, f"{self.inside} {self.what} are under way, which is all there is room for; try again later"
            )
        self.inside += 1

    def leave(self) -> None:
        """Go out."""
        self.inside -= 1

    @contextmanager
    def within(self) -> Iterator[None]:
        """Inside for the length of a block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()
