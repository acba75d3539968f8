"""Work of a session, done in threads, for an event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from speechlm.serving.reply import AudioDelta, Reply, TextDelta

Result = TypeVar("Result")
#: Threads for replies and ears; how many replies and sessions there are is bounded elsewhere, and each has one call at a time.
_pool = ThreadPoolExecutor(64, thread_name_prefix="voice")


async def in_thread(call: Callable[..., Result], *args: Any) -> Result:
    """The result of a call in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_pool, call, *args)


async def each(reply: Reply) -> AsyncIterator[TextDelta | AudioDelta]:
    """Go through a reply without blocking the loop; whoever leaves early stops it."""
    deltas = iter(reply)
    try:
        while (delta := await in_thread(_next, deltas)) is not None:
            yield delta
    finally:
        reply.stop()


def _next(deltas: Iterator[TextDelta | AudioDelta]) -> TextDelta | AudioDelta | None:
    return next(deltas, None)
