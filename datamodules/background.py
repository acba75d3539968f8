"""An iterator that works ahead on a side thread."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class _End:
    """The last thing in the queue: why nothing more comes."""

    error: BaseException | None = None


def in_background(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items, made on a side thread, at most `depth` of them ahead of whoever takes them.

    What the items raise is raised here. Whoever stops early closes the generator, and the thread ends with its present item.
    """
    ready: queue.Queue[Any] = queue.Queue(max(1, depth))
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work(iterator: Iterator[T]) -> None:
        end = _End()
        try:
            for item in iterator:
                if not put(item):
                    return
        except BaseException as error:
            end = _End(error)
        put(end)

    thread = threading.Thread(target=work, args=(iter(items),), daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        thread.join()
