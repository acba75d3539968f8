"""The server: an OpenAI-compatible interface, live voice, and the page."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speechlm.serving.reply import Reply
from speechlm.serving.voice import Voice
from speechlm.serving.web.completions import Completions, complete
from speechlm.serving.web.connection import connection_class
from speechlm.serving.web.errors import Refused, answer
from speechlm.serving.web.gate import Gate
from speechlm.serving.web.guard import Guard, deny
from speechlm.serving.web.realtime import LiveSession
from speechlm.serving.web.settings import ServerSettings
from speechlm.serving.web.threads import in_thread
from speechlm.serving.web.wire import ChatRequest

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
FILES = {"index.html": "text/html", "app.js": "text/javascript", "microphone.js": "text/javascript", "style.css": "text/css",
         "icon.svg": "image/svg+xml"}  # fmt: skip


def build_app(voice: Voice, settings: ServerSettings) -> ASGIApp:
    """The whole application, guarded."""
    app = FastAPI(title="speechlm", docs_url=None, redoc_url=None, openapi_url=None)
    replies, sessions = Gate(settings.replies, "replies"), Gate(settings.sessions, "live sessions")
    _add_errors(app)
    _add_page(app)
    _add_models(app, voice)
    _add_completions(app, Completions(voice), replies, settings)

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        asked = socket.query_params.get("model", voice.name)
        try:
            if asked != voice.name:
                raise Refused(404, f"there is no model {asked!r} here; there is {voice.name!r}", "model")
            sessions.enter()
        except Refused as refused:
            await deny(socket, answer(refused))
            return
        try:
            await LiveSession(socket, voice, replies, settings).run()
        finally:
            sessions.leave()

    return Guard(app, settings)


def build_server(voice: Voice, settings: ServerSettings) -> uvicorn.Server:
    """The application at its address."""
    config = uvicorn.Config(
        build_app(voice, settings),
        host=settings.host,
        port=settings.port,
        http=connection_class(settings.header_sec),
        ws="websockets-sansio",
        ws_max_size=settings.body_bytes // 2,
        ws_max_queue=8,
        timeout_keep_alive=round(settings.header_sec),
        timeout_graceful_shutdown=5,
        log_level="warning",
        server_header=False,
    )
    return uvicorn.Server(config)


def _add_completions(app: FastAPI, completions: Completions, replies: Gate, settings: ServerSettings) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        replies.enter()
        left = False
        try:
            if body.stream:
                reply = await in_thread(completions.begin, body)
                left = True
                return ReplyStream(completions.stream(body, reply), reply, replies, settings.send_sec)
            return JSONResponse(await _while_connected(completions, body, request))
        finally:
            if not left:
                replies.leave()


async def _while_connected(completions: Completions, body: ChatRequest, request: Request) -> dict[str, Any]:
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watching = asyncio.ensure_future(watch())
    try:
        return await complete(completions, body, gone)
    finally:
        watching.cancel()


class ReplyStream(StreamingResponse):
    """Events of a reply. However it ends, the reply is stopped and its place given back.

    Args:
        events: server-sent events.
        reply: that they are of.
        replies: where the reply has its place.
        send_sec: longest time that the client may take to accept an event.
    """

    def __init__(self, events: AsyncIterator[str], reply: Reply, replies: Gate, send_sec: float) -> None:
        super().__init__((event async for event in events if event), media_type="text/event-stream")
        self.reply, self.replies, self.send_sec = reply, replies, send_sec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        async def timed(message: Message) -> None:
            async with asyncio.timeout(self.send_sec):
                await send(message)

        try:
            await super().__call__(scope, receive, timed)
        except TimeoutError:
            log.warning("a client took longer than %g s to accept an event of its reply", self.send_sec)
        finally:
            self.reply.stop()
            self.replies.leave()


def _add_models(app: FastAPI, voice: Voice) -> None:
    model = {"id": voice.name, "object": "model", "created": 0, "owned_by": "speechlm", "template": voice.template_name}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != voice.name:
            raise Refused(404, f"there is no model {name!r} here; there is {voice.name!r}", "model")
        return model

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}


def _add_page(app: FastAPI) -> None:
    @app.get("/")
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html", media_type="text/html")

    @app.get("/page/{name}")
    async def file(name: str) -> FileResponse:
        if name not in FILES:
            raise HTTPException(404, "there is no such file")
        return FileResponse(PAGE / name, media_type=FILES[name])


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(Refused(422, f"{where or 'the body'}: {first['msg']}"[:500], where or None))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return answer(Refused(error.status_code, str(error.detail)))
