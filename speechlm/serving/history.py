"""What a conversation remembers: turns, how many of them, and how much of a reply was really heard."""

from collections.abc import Callable

import numpy as np

from speechlm.tokens.chat_templates import Chat, Turn


class History:
    """Turns in order, the oldest of them forgotten.

    Args:
        max_turns: that are remembered.
    """

    def __init__(self, max_turns: int) -> None:
        self.max_turns = max_turns
        self.system: Turn | None = None
        self._turns: dict[int, Turn] = {}
        self._next = 0

    @property
    def turns(self) -> list[Turn]:
        """The system's, where there is one, and those of both sides."""
        return [*([self.system] if self.system else []), *self._turns.values()]

    def append(self, turn: Turn) -> int:
        """Its number."""
        number = self._next
        self._next += 1
        self._turns[number] = turn
        while len(self._turns) > self.max_turns:
            del self._turns[next(iter(self._turns))]
        return number

    def replace(self, number: int, change: Callable[[Turn], Turn]) -> None:
        """Another turn in the place of one, where that is still remembered."""
        if number in self._turns:
            self._turns[number] = change(self._turns[number])

    def fitting(self, template: Chat, max_length: int, reply_ids: int) -> np.ndarray:
        """The newest turns as ids, so many that a reply of a quarter of the room, or of `reply_ids`, fits behind them.

        Raises:
            ValueError: nothing was said yet, or the last turn alone is too long.
        """
        said = list(self._turns.values())
        if not said or said[-1].role == "assistant":
            raise ValueError(
                "there is nothing to reply to: the conversation has no turn of the user since the last reply"
            )
        room = max_length - min(reply_ids, max_length // 4)
        system = [self.system] if self.system else []
        for begin in range(len(said)):
            if said[begin].role == "assistant" and begin + 1 < len(said):
                continue  # a conversation begins with the user
            ids = template.prompt(template.instructed([*system, *said[begin:]]))
            if len(ids) <= room:
                return ids
        raise ValueError(f"the last turn has {len(ids)} ids with all that surrounds it, there is room for {room}")


def cut_speech(turn: Turn, tokens: int) -> Turn:
    """A reply up to so many speech tokens; text behind the last of them was never said."""
    kept: list[tuple[str, np.ndarray]] = []
    for kind, values in turn.parts:
        if kind == "speech":
            values, tokens = values[:tokens], tokens - min(tokens, len(values))
        if len(values):
            kept.append((kind, values))
        if not tokens and kind == "speech":
            break
    return turn._replace(parts=tuple(kept))
