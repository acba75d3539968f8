"""The items of a long list in a JSON file, one after another: a file that is one giant object, in the memory of one item."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

CHUNK = 2**20  # characters
MAX_ITEM = 2**28


def items(path: Path, key: str, chunk: int = CHUNK) -> Iterator[dict[str, Any]]:
    """The objects of the list that the file's outermost object has under `key`.

    Args:
        path: a JSON file.
        key: of the list.
        chunk: characters read at a time.

    Raises:
        ValueError: the file is cut short, damaged, or has no such list.
    """
    with open(path, encoding="utf-8") as file:
        text = _Text(file, path, chunk)
        text.expect("{")
        while True:
            name = text.value()
            text.expect(":")
            if name == key:
                break
            text.value()
            if text.expect(",}") == "}":
                raise ValueError(f"{path} has no list named {key!r}")
        text.expect("[")
        if text.peek() == "]":
            return
        while True:
            item = text.value()
            if not isinstance(item, dict):
                raise ValueError(f"{path}: {key!r} has {type(item).__name__} in it, where objects belong")
            yield item
            if text.expect(",]") == "]":
                return


class _Text:
    """A file's characters from a position on; what lies before it is forgotten."""

    def __init__(self, file: IO[str], path: Path, chunk: int) -> None:
        self.file, self.path, self.chunk = file, path, chunk
        self.decoder = json.JSONDecoder()
        self.held, self.at = "", 0

    def peek(self) -> str:
        """The next character that is not blank."""
        while True:
            while self.at < len(self.held) and self.held[self.at].isspace():
                self.at += 1
            if self.at < len(self.held):
                return self.held[self.at]
            self._more()

    def expect(self, wanted: str) -> str:
        """Take the next character, one of those wanted."""
        found = self.peek()
        if found not in wanted:
            raise ValueError(f"{self.path} is damaged: {found!r} where one of {wanted!r} belongs")
        self.at += 1
        return found

    def value(self) -> Any:
        """Take a value; one at the very end of what is held may go on behind it."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.held, self.at)
            except ValueError:
                end = len(self.held)
            except RecursionError:
                raise ValueError(f"{self.path} is nested deeper than any corpus") from None
            if end < len(self.held):
                self.at = end
                return value
            self._more()

    def _more(self) -> None:
        """Hold twice as much, and a chunk at least, so that a long value is not begun too often."""
        more = self.file.read(max(self.chunk, len(self.held) - self.at))
        self.held, self.at = self.held[self.at :] + more, 0
        if not more:
            raise ValueError(f"{self.path} is cut short or damaged; fetch it again")
        if len(self.held) > MAX_ITEM:
            raise ValueError(f"{self.path} has an item of more than {MAX_ITEM} characters, or is damaged")
