"""`POST /v1/chat/completions`: a conversation in, a reply in text and sound out, whole or as it is made."""

import asyncio
import base64
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from speechlm.engines.streaming import EngineBusy, EngineFailed, Kind
from speechlm.serving.reply import AudioDelta, Reply, Wish
from speechlm.serving.resample import Resampler
from speechlm.serving.session import VoiceSession
from speechlm.serving.voice import Voice
from speechlm.serving.web import sounds
from speechlm.serving.web.errors import Refused, body_of
from speechlm.serving.web.threads import each, in_thread
from speechlm.serving.web.wire import AudioPart, ChatRequest, Message, TextPart
from speechlm.tokens.chat_templates import Turn

FINISH = {"stop": "stop", "length": "length", "late": "length", "invalid": "stop", "interrupted": "stop"}
REMEMBERED = 512  # replies that later requests can name
REMEMBERED_SEC = 3600


class Completions:
    """Replies to conversations that come whole with each request.

    Args:
        voice: see `Voice`.
    """

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self._spoken: OrderedDict[str, Turn] = OrderedDict()

    def begin(self, request: ChatRequest) -> Reply:
        """Read a request and begin its reply; work for a thread.

        Raises:
            Refused: it can not be replied to.
        """
        if request.model != self.voice.name:
            raise Refused(404, f"there is no model {request.model!r} here; there is {self.voice.name!r}", "model")
        if not request.spoken and not self.voice.form.kinds & Kind.TEXT:
            raise Refused(422, "this model replies in speech alone; ask for it with `modalities`", "modalities")
        if request.spoken and not self.voice.form.kinds & Kind.SPEECH:
            raise Refused(422, "this model replies in text alone", "modalities")
        try:
            session = VoiceSession(self.voice)
            for message in request.messages:
                self._hear(session, message)
            wish = Wish(request.sampling(self.voice.sampling), request.most, self._speaker(request), not request.spoken)
            return session.reply(wish)
        except ValueError as error:
            raise Refused(422, str(error), "messages") from error
        except EngineBusy as error:
            raise Refused(429, str(error)) from error
        except EngineFailed as error:
            raise Refused(503, str(error)) from error

    def whole(self, request: ChatRequest, reply: Reply) -> dict[str, Any]:
        """Go through a reply; the response's JSON.

        Raises:
            Refused: the engine died or stalled.
        """
        try:
            samples = [delta.samples for delta in reply if isinstance(delta, AudioDelta)]
        except EngineFailed as error:
            raise Refused(503, str(error)) from error
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if request.spoken:
            audio = np.concatenate([np.zeros(0, np.float32), *samples])
            name = request.audio.format if request.audio else "wav"
            data = base64.b64encode(sounds.encoded(audio, self.voice.output_hz, name)).decode()
            message["content"] = None
            message["audio"] = {**self._kept(reply), "data": data, "transcript": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": FINISH[reply.end], "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(reply), "timings": timings(reply)}

    async def stream(self, request: ChatRequest, reply: Reply) -> AsyncIterator[str]:
        """A reply as server-sent events, in the form of OpenAI's chunks."""
        head, resampler = self._head("chat.completion.chunk"), Resampler(self.voice.output_hz, sounds.PCM_HZ)
        kept = {"id": f"audio_{uuid.uuid4().hex[:24]}"}

        def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            return f"data: {json.dumps({**head, 'choices': [choice], **more})}\n\n"

        def sound(audio: np.ndarray, last: bool = False) -> str:
            data = sounds.pcm16(resampler.push(audio, last))
            return chunk({"audio": {**kept, "data": base64.b64encode(data).decode()}}) if data else ""

        try:
            yield chunk({"role": "assistant", "content": "" if not request.spoken else None})
            async for delta in each(reply):
                if isinstance(delta, AudioDelta):
                    yield sound(delta.samples)
                elif request.spoken:
                    yield chunk({"audio": {**kept, "transcript": delta.text}})
                else:
                    yield chunk({"content": delta.text})
            if request.spoken:
                yield sound(np.zeros(0, np.float32), last=True)
                yield chunk({"audio": self._kept(reply, kept["id"])})
            yield chunk({}, FINISH[reply.end], timings=timings(reply))
            if request.stream_options and request.stream_options.include_usage:
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage(reply)})}\n\n"
        except EngineFailed as error:
            yield f"data: {json.dumps(body_of(503, str(error)))}\n\n"
        yield "data: [DONE]\n\n"

    def _hear(self, session: VoiceSession, message: Message) -> None:
        """One message becomes a turn of the conversation."""
        if message.role == "assistant":
            session.history.append(self._said(message))
            return
        text, spoken = _text_of(message), _audio_of(message)
        if message.role in ("system", "developer"):
            session.instruct(text)
            return
        if text.strip():
            session.write(text)
        for part in spoken:
            session.hear(sounds.decoded(part.input_audio.data, self.voice.input_hz, self.voice.limits.audio_sec))
            if session.commit() is None:
                raise Refused(422, "the audio has no samples", "input_audio.data")
        if not text.strip() and not spoken:
            raise Refused(422, f"a message of the {message.role} is empty", "messages")

    def _said(self, message: Message) -> Turn:
        """An earlier reply: what this server said, by its id, else the text that the client remembers."""
        known = self._spoken.get(message.audio.id) if message.audio else None
        if known is not None:
            return known
        text = _text_of(message)
        if not text.strip():
            raise Refused(422, "an earlier reply is known neither by its id, which this server has forgotten, nor by text",
                          "messages")  # fmt: skip
        return self.voice.written("assistant", text)

    def _speaker(self, request: ChatRequest) -> str:
        wanted = request.audio.voice if request.audio else ""
        return wanted if isinstance(wanted, str) else str(wanted.get("id", ""))

    def _kept(self, reply: Reply, name: str = "") -> dict[str, Any]:
        """Remember a reply, so that later requests can name it."""
        name = name or f"audio_{uuid.uuid4().hex[:24]}"
        if reply.turn.parts:
            self._spoken[name] = reply.turn
        while len(self._spoken) > REMEMBERED:
            self._spoken.popitem(last=False)
        return {"id": name, "expires_at": int(time.time()) + REMEMBERED_SEC}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex[:24]}",
            "object": kind,
            "created": int(time.time()),
            "model": self.voice.name,
        }


def _text_of(message: Message) -> str:
    """What is typed in a message."""
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content if isinstance(part, TextPart))
    return message.content or ""


def _audio_of(message: Message) -> list[AudioPart]:
    """What is spoken in a message."""
    return (
        [part for part in message.content if isinstance(part, AudioPart)] if isinstance(message.content, list) else []
    )


def usage(reply: Reply) -> dict[str, Any]:
    """Ids of a reply and of what came before it."""
    return {
        "prompt_tokens": reply.num_prompt,
        "completion_tokens": reply.num_new,
        "total_tokens": reply.num_prompt + reply.num_new,
    }


def timings(reply: Reply) -> dict[str, float]:
    """Milliseconds from the end of speech to the first sound, by part; see `Times`."""
    times = reply.times
    parts = {"hear": times.hear, "wait": times.wait, "think": times.think, "decode": times.decode, "speak": times.speak}
    return {f"{name}_ms": round(1000 * value, 1) for name, value in {**parts, "total": times.total}.items()}


async def complete(completions: Completions, request: ChatRequest, gone: asyncio.Event) -> dict[str, Any]:
    """A whole reply; it is stopped where the client goes first."""
    reply = await in_thread(completions.begin, request)
    work = asyncio.ensure_future(in_thread(completions.whole, request, reply))
    leaving = asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            reply.stop()
        return await work
    finally:
        leaving.cancel()
        reply.stop()
