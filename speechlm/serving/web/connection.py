"""A connection of uvicorn's that does not wait for a request for ever: who trickles in a head, or sends none, is let go."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LINGER_SEC = 3.0
SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def connection_class(header_sec: float) -> type[H11Protocol]:
    """The class of connections whose first head is here within so many seconds."""
    return type("TimedConnection", (_TimedConnection,), {"header_sec": header_sec})


class _TimedConnection(H11Protocol):
    header_sec = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.header_sec, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.scope is not None:  # a head was here
            self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            # Answered before all of the body came. It is thrown away for a moment, since a client that is still sending when the
            # connection goes never reads the answer.
            self.loop.call_later(LINGER_SEC, self.transport.close)

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(SLOW)
            self.transport.close()

    def _disarm(self, *_: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
