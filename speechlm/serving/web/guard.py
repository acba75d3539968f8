"""The door: who may come in, how much they may carry, and how long they may take. Plain ASGI, before anything is parsed."""

import asyncio
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from speechlm.serving.web.errors import Refused, answer
from speechlm.serving.web.settings import LOOPBACK, ServerSettings

KEY_PROTOCOL = "openai-insecure-api-key."  # how a browser, which can set no headers on a WebSocket, shows its key
PAGE_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; connect-src 'self' ws: wss:; media-src 'self' blob:; base-uri 'none'; "
     b"frame-ancestors 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)  # fmt: skip


class Guard:
    """Wraps an application.

    Everything below `/v1` needs the key. A body is read here, in its time and up to its size, and handed on whole.

    Args:
        app: what is guarded.
        settings: bounds.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._at_work >= self.settings.requests:
            refused = Refused(
                429, f"{self._at_work} requests are at work, which is all there is room for; try again later"
            )
            await answer(refused)(scope, receive, send)
            return
        self._at_work += 1
        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except Refused as refused:
            await answer(refused)(scope, receive, send)
        else:
            await self.app(scope, _replayed(body, receive), send)
        finally:
            self._at_work -= 1

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except Refused as refused:
            await deny(WebSocket(scope, receive, send), answer(refused))
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Refuse other hosts' pages, and who does not have the key.

        Raises:
            Refused: with 401 or 403.
        """
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, f"pages of {origin} may not use this server")
        if not self.settings.api_key and urlsplit(f"//{host}").hostname not in LOOPBACK:
            raise Refused(403, f"without a key this server answers to the names of this machine only, not to {host!r}")
        if scope["path"].startswith("/v1") and not self._has_key(headers):
            raise Refused(401, "no key, or a wrong one; send `Authorization: Bearer KEY`")

    def _has_key(self, headers: Headers) -> bool:
        expected = self.settings.api_key
        if not expected:
            return True
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        protocols = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
        keys = [name.removeprefix(KEY_PROTOCOL) for name in protocols if name.startswith(KEY_PROTOCOL)]
        keys += [shown.strip()] if scheme.lower() == "bearer" else []
        return any(hmac.compare_digest(key.encode(errors="replace"), expected.encode()) for key in keys)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of a request's body.

        Raises:
            Refused: with 413, or 408.
        """
        limit = self.settings.body_bytes
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise Refused(413, f"a request has at most {limit} bytes, this one says {length[:20]}")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.body_sec):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(408, "the connection ended in the middle of the request")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > limit:
                        raise Refused(413, f"a request has at most {limit} bytes, this one has more")
        except TimeoutError:
            raise Refused(408, f"the request was not here within {self.settings.body_sec:g} s") from None
        return b"".join(parts)


async def deny(socket: WebSocket, response: Response) -> None:
    """Answer a WebSocket's first request with an ordinary response."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(response)
    else:
        await socket.close(1008)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The whole body first, then whatever else comes, which is that the client has gone."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *PAGE_HEADERS]}
        await send(message)

    return sending
