"""One reply of a live session, as events."""

import asyncio
import base64
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from speechlm.engines.base import Sampling
from speechlm.engines.streaming import EngineBusy, EngineFailed, Kind
from speechlm.serving.reply import AudioDelta, Reply, Wish, fresh_seed
from speechlm.serving.resample import Resampler
from speechlm.serving.web import sounds
from speechlm.serving.web.completions import timings, usage
from speechlm.serving.web.realtime_wire import ResponseSettings
from speechlm.serving.web.threads import each, in_thread

if TYPE_CHECKING:
    from speechlm.serving.web.realtime import LiveSession

STATUS = {"stop": "completed", "length": "incomplete", "late": "incomplete", "invalid": "incomplete",
          "interrupted": "cancelled", "failed": "failed"}  # fmt: skip


class LiveReply:
    """Made and sent by `run`.

    Args:
        live: the session it belongs to.
        wish: what is asked for beyond the session's settings.

    Attributes:
        item: id of the reply in the conversation.
        sounding: set once its first sound is out, or it is over.
        over: set once it is.
    """

    def __init__(self, live: "LiveSession", wish: ResponseSettings) -> None:
        self.live, self.wish = live, wish
        self.id, self.item = (f"{kind}_{uuid.uuid4().hex[:20]}" for kind in ("resp", "item"))
        self.sounding, self.over = asyncio.Event(), asyncio.Event()
        modalities = wish.output_modalities or live.settings.output_modalities
        can = live.voice.form.kinds
        self.spoken = bool(can & Kind.SPEECH) and (modalities == ["audio"] or not can & Kind.TEXT)
        self.reason = ""
        self._reply: Reply | None = None
        self._resampler = Resampler(live.voice.output_hz, live.settings.audio.output.format.rate)
        self._place = {"response_id": self.id, "item_id": self.item, "output_index": 0, "content_index": 0}

    def interrupt(self, reason: str) -> None:
        """Stop it; "turn_detected" or "client_cancelled" is why."""
        self.reason = self.reason or reason
        if self._reply is not None:
            self._reply.stop()

    async def run(self) -> None:
        """Send all events, from `response.created` to `response.done`."""
        live = self.live
        await live.send("response.created", response=self._response("in_progress"))
        before, live.last_item = live.last_item, self.item
        try:
            self._reply = reply = await in_thread(live.session.reply, self._wishes())
        except (ValueError, EngineBusy, EngineFailed) as error:
            await self._done("failed", str(error))
            return
        if self.reason:
            reply.stop()
        failure = ""
        try:
            await self._open(before)
            try:
                async for delta in each(reply):
                    await (self._sound(delta.samples) if isinstance(delta, AudioDelta) else self._text(delta.text))
            except EngineFailed as error:
                failure = str(error)
        finally:
            if reply.turn.parts:
                live.name(self.item, live.session.remember(reply))
        await self._close()
        await self._done("failed" if failure else reply.end, failure)

    def _wishes(self) -> Wish:
        own, asked = self.live.settings, self.wish
        usual = self.live.voice.sampling
        heat = usual.temperature if own.temperature is None else own.temperature
        most = asked.max_output_tokens or own.max_output_tokens
        return Wish(
            Sampling(heat, usual.top_k, usual.top_p, fresh_seed()),
            most if isinstance(most, int) else None,
            own.audio.output.voice,
            silent=not self.spoken,
        )

    async def _open(self, before: str | None) -> None:
        live = self.live
        item = self._item("in_progress", [])
        live.name(self.item, None)
        await live.send("response.output_item.added", response_id=self.id, output_index=0, item=item)
        await live.send("conversation.item.added", previous_item_id=before, item=item)
        await live.send("response.content_part.added", **self._place, part=self._part(""))

    async def _sound(self, samples: np.ndarray, last: bool = False) -> None:
        data = sounds.pcm16(self._resampler.push(samples, last))
        if data:
            await self.live.send("response.output_audio.delta", **self._place, delta=base64.b64encode(data).decode())
            self.sounding.set()

    async def _text(self, text: str) -> None:
        name = "response.output_audio_transcript.delta" if self.spoken else "response.output_text.delta"
        await self.live.send(name, **self._place, delta=text)

    async def _close(self) -> None:
        live, text = self.live, self._reply.text if self._reply else ""
        if self.spoken:
            if self._reply is not None and self._reply.end != "interrupted":
                await self._sound(np.zeros(0, np.float32), last=True)
            await live.send("response.output_audio.done", **self._place)
            await live.send("response.output_audio_transcript.done", **self._place, transcript=text)
        else:
            await live.send("response.output_text.done", **self._place, text=text)
        await live.send("response.content_part.done", **self._place, part=self._part(text))
        item = self._item("completed", [self._part(text)])
        await live.send("response.output_item.done", response_id=self.id, output_index=0, item=item)
        await live.send("conversation.item.done", previous_item_id=None, item=item)

    async def _done(self, end: str, failure: str = "") -> None:
        status = STATUS[end]
        details: dict[str, Any] = {"type": status}
        if status == "cancelled":
            details["reason"] = self.reason or "client_cancelled"
        elif status == "incomplete":
            details["reason"] = "max_output_tokens"
        elif status == "failed":
            details["error"] = {"type": "server_error", "code": None, "message": failure}
        more: dict[str, Any] = {"usage": None}
        if self._reply is not None:
            counts = usage(self._reply)
            more["usage"] = {
                "input_tokens": counts["prompt_tokens"],
                "output_tokens": counts["completion_tokens"],
                "total_tokens": counts["total_tokens"],
            }
            more["timings"] = timings(self._reply)
        text = self._reply.text if self._reply else ""
        output = [self._item("completed", [self._part(text)])] if self._reply else []
        self.over.set()
        await self.live.send(
            "response.done", response={**self._response(status), "status_details": details, "output": output, **more}
        )

    def _response(self, status: str) -> dict[str, Any]:
        modalities = ["audio" if self.spoken else "text"]
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": None,
            "output": [],
            "output_modalities": modalities,
            "conversation_id": self.live.id,
            "metadata": self.wish.metadata,
            "usage": None,
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.item,
            "object": "realtime.item",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_audio", "transcript": text} if self.spoken else {"type": "output_text", "text": text}
