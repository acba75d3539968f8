"""Live voice over a WebSocket, with the event names of OpenAI's Realtime interface.

A client sends `input_audio_buffer.append` as it hears. With `turn_detection` the server finds the turns; without it the client
says `input_audio_buffer.commit` and `response.create`. Replies come as `response.output_audio.delta` and
`response.output_audio_transcript.delta`. Who speaks into a reply interrupts it, and says with `conversation.item.truncate` how
much of it was heard. Sample rates other than 24 kHz can be asked for by `audio.*.format.rate`.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ValidationError

from speechlm.engines.streaming import EngineBusy, EngineFailed
from speechlm.serving.resample import Resampler
from speechlm.serving.session import VoiceSession
from speechlm.serving.turns import TurnEvent
from speechlm.serving.voice import Voice
from speechlm.serving.web import sounds
from speechlm.serving.web.errors import Refused
from speechlm.serving.web.gate import Gate
from speechlm.serving.web.realtime_reply import LiveReply
from speechlm.serving.web.realtime_wire import ResponseSettings, SessionSettings, merged
from speechlm.serving.web.settings import ServerSettings
from speechlm.serving.web.threads import in_thread

log = logging.getLogger(__name__)
ITEMS = 256  # that can be named later


def named(kind: str) -> str:
    """A new id."""
    return f"{kind}_{uuid.uuid4().hex[:20]}"


class LiveSession:
    """One connection.

    Args:
        socket: not yet accepted.
        voice: see `Voice`.
        replies: places for replies, shared with all other requests.
        settings: bounds.
    """

    def __init__(self, socket: WebSocket, voice: Voice, replies: Gate, settings: ServerSettings) -> None:
        self.socket, self.voice, self.replies, self.bounds = socket, voice, replies, settings
        self.id = named("sess")
        self.settings = SessionSettings(model=voice.name)
        self.session: VoiceSession  # made once the connection is accepted
        self.items: dict[str, int | None] = {}  # id of an item -> its number in the history
        self.last_item: str | None = None
        self._speaking = ""  # id of the item that the user is saying
        self.reply: LiveReply | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self._sending = asyncio.Lock()
        self._resampler = Resampler(self.settings.audio.input.format.rate, voice.input_hz)
        self._handlers: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.truncate": self._truncate,
            "response.create": self._respond,
            "response.cancel": self._cancel,
        }

    async def run(self) -> None:
        """Until the client goes."""
        protocols = self.socket.scope.get("subprotocols", [])
        await self.socket.accept("realtime" if "realtime" in protocols else None)
        try:
            self.session = await in_thread(VoiceSession, self.voice)
            await self.send("session.created", session=self.described())
            while True:
                async with asyncio.timeout(self.bounds.idle_sec):
                    message = await self.socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._handle(message.get("text") or "")
        except (WebSocketDisconnect, TimeoutError) as error:
            log.debug("live session ended: %r", error)
            await self._hang_up()
        finally:
            await self._end()

    async def send(self, kind: str, **fields: Any) -> None:
        """One event; a client that does not accept it in time is let go."""
        text = json.dumps({"type": kind, "event_id": named("event"), **fields})
        async with self._sending, asyncio.timeout(self.bounds.send_sec):
            await self.socket.send_text(text)

    def described(self) -> dict[str, Any]:
        """The session as clients see it."""
        about = {"id": self.id, "object": "realtime.session", "template": self.voice.template_name}
        own = self.settings.model_dump()
        own["instructions"] = own["instructions"] or self.voice.instructions
        return {**own, **about, "voices": list(self.voice.speakers)}

    def start(self, work: Awaitable[None]) -> None:
        """Do something beside everything else."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # -- what the client sends -----------------------------------------------------------------------------------------

    async def _handle(self, text: str) -> None:
        try:
            event = json.loads(text)
            kind = event["type"]
            handler = self._handlers[kind]
        except (ValueError, TypeError, KeyError, RecursionError):
            known = ", ".join(self._handlers)
            await self.complain(f"an event is a JSON object with a `type` of {known}; got {text[:80]!r}", None)
            return
        event_id = event.get("event_id")
        try:
            await handler(event)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            await self.complain(f"{where}: {first['msg']}"[:500], event_id, where)
        except (ValueError, EngineBusy, EngineFailed, Refused) as error:
            await self.complain(str(error)[:500], event_id)

    async def complain(self, message: str, event_id: Any, param: str | None = None) -> None:
        """The session goes on."""
        about = {
            "type": "invalid_request_error",
            "code": None,
            "message": message,
            "param": param,
            "event_id": event_id,
        }
        await self.send("error", error=about)

    async def _update(self, event: dict[str, Any]) -> None:
        asked = _section(event, "session")
        new = SessionSettings(**merged(self.settings.model_dump(), asked))
        if new.model not in ("", self.voice.name):
            raise ValueError(f"there is no model {new.model!r} here; there is {self.voice.name!r}")
        rate, turns = new.audio.input.format.rate, new.audio.input.turn_detection
        resampler = Resampler(rate, self.voice.input_hz)
        Resampler(self.voice.output_hz, new.audio.output.format.rate)
        settings = turns.settings() if turns else None
        old, self.settings = self.settings, new
        if rate != old.audio.input.format.rate:
            self._resampler = resampler
        if new.instructions is not None and new.instructions != old.instructions:
            self.session.instruct(new.instructions)
        if turns != old.audio.input.turn_detection:
            self.session.forget()
            if settings is not None:
                self.session.set_turns(settings)
        await self.send("session.updated", session=self.described())

    async def _append(self, event: dict[str, Any]) -> None:
        try:
            audio = sounds.from_pcm16(base64.b64decode(event["audio"], validate=True))
        except (KeyError, TypeError, binascii.Error, ValueError) as error:
            raise ValueError(f"`audio` is base64 of 16-bit samples: {error}") from error
        borders = await in_thread(self._heard, audio)
        for border in borders:
            await self._border(border)

    def _heard(self, audio: np.ndarray) -> list[TurnEvent]:
        samples = np.clip(self._resampler.push(audio), -1.0, 1.0)
        if self.settings.audio.input.turn_detection is not None:
            return list(self.session.listen(samples))
        if len(samples):
            self.session.hear(samples)
        return []

    async def _border(self, border: TurnEvent) -> None:
        turns = self.settings.audio.input.turn_detection
        ms = round(1000 * border.sample / self.voice.input_hz)
        if border.kind == "started":
            self._speaking = named("item")
            await self.send("input_audio_buffer.speech_started", audio_start_ms=ms, item_id=self._speaking)
            if turns is not None and turns.interrupt_response and self.reply is not None:
                self.reply.interrupt("turn_detected")
            return
        await self.send("input_audio_buffer.speech_stopped", audio_end_ms=ms, item_id=self._speaking)
        await self._committed(self._speaking)
        if turns is not None and turns.create_response:
            await self._begin(ResponseSettings())

    async def _commit(self, event: dict[str, Any]) -> None:
        if await in_thread(self.session.commit) is None:
            raise ValueError("nothing was heard since the last turn, so there is nothing to commit")
        await self._committed(named("item"))

    async def _committed(self, item: str) -> None:
        before, self.last_item = self.last_item, item
        self.name(item, None)
        await self.send("input_audio_buffer.committed", previous_item_id=before, item_id=item)
        content = [{"type": "input_audio", "transcript": None}]
        await self.send("conversation.item.added", previous_item_id=before, item=_item(item, "user", content))
        await self.send("conversation.item.done", previous_item_id=before, item=_item(item, "user", content))
        if self.settings.audio.input.transcription is not None and self.voice.transcribe is not None:
            self.start(self._transcribe(item, self.session.last_utterance))

    async def _transcribe(self, item: str, audio: np.ndarray) -> None:
        """What the user said, in writing; the reply goes first."""
        if self.reply is not None:
            await self.reply.sounding.wait()
        assert self.voice.transcribe is not None
        limit = 30 * self.voice.input_hz  # of the tokenizer's decoder
        text = await in_thread(self.voice.transcribe, audio[:limit])
        name = "conversation.item.input_audio_transcription.completed"
        usage = {"type": "duration", "seconds": round(len(audio) / self.voice.input_hz, 2)}
        await self.send(name, item_id=item, content_index=0, transcript=text, usage=usage)

    async def _clear(self, event: dict[str, Any]) -> None:
        self.session.forget()
        await self.send("input_audio_buffer.cleared")

    async def _create_item(self, event: dict[str, Any]) -> None:
        item = _section(event, "item")
        content = item.get("content")
        if item.get("type") != "message" or item.get("role") != "user" or not isinstance(content, list):
            raise ValueError("an item is a message of the user with a list of `content`")
        if not all(isinstance(part, dict) and part.get("type") == "input_text" for part in content):
            raise ValueError("content of an item is `input_text`; audio comes by input_audio_buffer.append")
        text = "\n".join(str(part.get("text", "")) for part in content)
        number = await in_thread(self.session.write, text)
        name, before = str(item.get("id") or named("item"))[:64], self.last_item
        self.last_item = name
        self.name(name, number)
        made = _item(name, "user", [{"type": "input_text", "text": text}])
        await self.send("conversation.item.added", previous_item_id=before, item=made)
        await self.send("conversation.item.done", previous_item_id=before, item=made)

    async def _truncate(self, event: dict[str, Any]) -> None:
        name, end = event.get("item_id"), event.get("audio_end_ms")
        if name not in self.items or not isinstance(end, int) or not 0 <= end < 10**9:
            raise ValueError(f"there is no reply {name!r} here, or audio_end_ms is no number of milliseconds: {end!r}")
        if self.reply is not None and self.reply.item == name:
            self.reply.interrupt("client_cancelled")
            await self.reply.over.wait()
        number = self.items[name]
        if number is not None:
            self.session.truncate(number, end / 1000)
        await self.send("conversation.item.truncated", item_id=name, content_index=0, audio_end_ms=end)

    # -- replies -------------------------------------------------------------------------------------------------------

    async def _respond(self, event: dict[str, Any]) -> None:
        if self.reply is not None and not self.reply.reason:
            raise ValueError("a reply is under way; send response.cancel first")
        await self._begin(ResponseSettings(**_section(event, "response", optional=True)))

    async def _begin(self, wish: ResponseSettings) -> None:
        if self.reply is not None:
            self.reply.interrupt("turn_detected")
            await self.reply.over.wait()
        self.replies.enter()
        self.reply = LiveReply(self, wish)
        self.start(self._go_through(self.reply))

    async def _go_through(self, reply: LiveReply) -> None:
        try:
            await reply.run()
        except (WebSocketDisconnect, TimeoutError) as error:
            log.debug("a live reply ended: %r", error)
            await self._hang_up()
        finally:
            self.replies.leave()
            if self.reply is reply:
                self.reply = None
            reply.over.set()
            reply.sounding.set()

    async def _cancel(self, event: dict[str, Any]) -> None:
        if self.reply is None:
            raise ValueError("no reply is under way")
        self.reply.interrupt("client_cancelled")

    async def _hang_up(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed already
            await self.socket.close(1008)

    async def _end(self) -> None:
        if self.reply is not None:
            self.reply.interrupt("client_cancelled")
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def name(self, item: str, number: int | None) -> None:
        """An item can be named from now on; its number in the history, where it has one."""
        self.items[item] = number
        while len(self.items) > ITEMS:
            del self.items[next(iter(self.items))]


def _item(name: str, role: str, content: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    """A message as the interface writes it."""
    return {
        "id": name,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": content,
    }


def _section(event: dict[str, Any], name: str, optional: bool = False) -> dict[str, Any]:
    value = event.get(name, {} if optional else None)
    if not isinstance(value, dict | BaseModel):
        raise ValueError(f"`{name}` is an object, got {str(value)[:80]!r}")
    return dict(value)
