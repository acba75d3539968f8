"""A side thread that makes the next items while the last one is in use."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
_END = object()


class Ahead(Generic[Item]):
    """Items of an iterator, the same and in the same order, made `depth` ahead; an exception arrives where its item would.

    Args:
        items: makes the iterator; called whenever iteration begins.
        depth: items made ahead; 0 makes them in the caller's thread.
    """

    def __init__(self, items: Callable[[], Iterator[Item]], depth: int) -> None:
        self.items, self.depth = items, depth

    def __iter__(self) -> Iterator[Item]:
        return self._from_thread(self.items()) if self.depth else self.items()

    def _from_thread(self, items: Iterator[Item]) -> Iterator[Item]:
        made: queue.Queue = queue.Queue(self.depth)
        stopped = threading.Event()
        thread = threading.Thread(target=_make, args=(items, made, stopped), daemon=True)
        thread.start()
        try:
            while (item := made.get()) is not _END:
                if isinstance(item, _Failed):
                    raise item.error
                yield item
        finally:
            stopped.set()
            while not made.empty():
                made.get_nowait()
            thread.join(timeout=10)


class _Failed:
    """An exception on its way out of the thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _make(items: Iterator, made: queue.Queue, stopped: threading.Event) -> None:
    try:
        for item in items:
            _put(made, item, stopped)
            if stopped.is_set():
                return
        _put(made, _END, stopped)
    except BaseException as error:
        _put(made, _Failed(error), stopped)


def _put(made: queue.Queue, item: object, stopped: threading.Event) -> None:
    """Put an item unless nobody wants it any more."""
    while not stopped.is_set():
        with suppress(queue.Full):
            made.put(item, timeout=0.1)
            return
