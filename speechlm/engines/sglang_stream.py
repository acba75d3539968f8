"""Replies as an SGLang server generates them, over its `/generate` with `stream`; the server batches conversations by itself.

An event holds all ids so far, or only the new ones where the server was started so; how many there are altogether tells which.
The server draws from the whole vocabulary, so the first id that no reply can have ends the reply.
"""

import contextlib
import json
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import urllib3

from speechlm.engines.base import Prompt, check_prompt
from speechlm.engines.id_kinds import IdKinds
from speechlm.engines.sglang import check_address, sampling_params
from speechlm.engines.streaming import Ask, End, EngineBusy, EngineFailed, Kind

EVENT_LIMIT = 2**20  # bytes of one event


class SGLangStream:
    """See `IdStream`. Ids are read from the connection as they are asked for."""

    def __init__(self, ask: Ask, kinds: IdKinds, response: Any) -> None:
        self.ask, self.kinds = ask, kinds
        self.end: End | Literal[""] = ""
        self._response = response
        self._events = _events(response)
        self._new: deque[int] = deque()
        self._given = 0  # ids that events have brought
        self._reason: dict[str, Any] | None = None
        self._closed = threading.Event()

    def __iter__(self) -> "SGLangStream":
        return self

    def __next__(self) -> int:
        """See `IdStream`."""
        while not self._new and not self.end:
            self._read()
        if self.end:
            raise StopIteration
        shared_id = self._new.popleft()
        kind = self.kinds.kind(shared_id, self.ask.form.end)
        if kind is Kind.END or not kind & self.ask.form.kinds:
            self._finish("stop" if kind is Kind.END else "invalid")
            raise StopIteration
        return shared_id

    def close(self) -> None:
        """See `IdStream`; the server stops when the connection goes."""
        if not self._closed.is_set():
            self._closed.set()
            _hang_up(self._response)

    def _read(self) -> None:
        """The next event's ids, or the end."""
        if self._reason is not None:
            self._finish("length" if self._reason.get("type") == "length" else "stop")
            return
        event: dict[str, Any] | Exception | None
        try:
            event = next(self._events, None)
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            event = error
        if self._closed.is_set():
            self._finish("interrupted")
        elif isinstance(event, dict):
            self._take(event)
        else:
            why = "it hung up in the middle of a reply" if event is None else f"{type(event).__name__}: {event}"
            self._fail(why)

    def _take(self, event: dict[str, Any]) -> None:
        try:
            ids, about = list(event["output_ids"]), event["meta_info"]
            total, self._reason = int(about.get("completion_tokens", len(ids))), about.get("finish_reason")
        except (KeyError, TypeError, ValueError):
            self._fail(str(event.get("error", event))[:300])
            return
        if self._reason is not None and self._reason.get("type") not in ("stop", "length"):
            self._fail(str(self._reason)[:300])
            return
        fresh = ids[self._given :] if len(ids) >= total else ids
        self._given += len(fresh)
        if not all(isinstance(i, int) for i in fresh):
            self._fail(f"ids that are no integers: {str(fresh)[:100]}")
            return
        self._new.extend(fresh)

    def _finish(self, end: End) -> None:
        self.end = end
        self.close()

    def _fail(self, why: str) -> None:
        self._finish("invalid")
        raise EngineFailed(f"the SGLang server failed: {why}")


class SGLangStreams:
    """A `StreamingEngine` on an SGLang server that was started with the same model, `--skip-tokenizer-init`.

    Args:
        url: of the server.
        kinds: what ids are.
        vocab_size: ids of the model.
        max_length: positions the server was started with.
        api_key_env: environment variable with the server's key; one on another machine needs one.
        max_open: replies at once.
        stall_sec: longest wait for ids.

    Raises:
        ValueError: the address is none, or of another machine and without a key.
    """

    def __init__(
        self,
        url: str,
        kinds: IdKinds,
        vocab_size: int,
        max_length: int = 2048,
        api_key_env: str = "SGLANG_API_KEY",
        max_open: int = 64,
        stall_sec: float = 20.0,
    ) -> None:
        key = os.environ.get(api_key_env, "")
        check_address(url, key, api_key_env)
        self.url, self.kinds, self.vocab_size, self.max_length = url.rstrip("/"), kinds, vocab_size, max_length
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._http = urllib3.PoolManager(
            maxsize=max_open, timeout=urllib3.Timeout(connect=5.0, read=stall_sec), retries=False
        )

    def open(self, ask: Ask) -> SGLangStream:
        """See `StreamingEngine.open`."""
        prompt = Prompt(ask.key, tuple(ask.ids), ask.max_new)
        check_prompt(prompt, self.vocab_size, self.max_length)
        params = sampling_params(prompt, ask.sampling, ask.form.end)
        body = json.dumps({"input_ids": list(ask.ids), "sampling_params": params, "stream": True}).encode()
        try:
            response = self._http.request(
                "POST",
                self.url + "/generate",
                body=body,
                headers=self._headers,
                redirect=False,
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise EngineFailed(f"no SGLang server answers at {self.url}: {error}") from error
        if response.status != 200:
            content = response.read(500).decode(errors="replace")
            response.close()
            if response.status in (429, 503):
                raise EngineBusy(f"the SGLang server takes no more: {content}")
            raise EngineFailed(f"the SGLang server answered {response.status}: {content}")
        return SGLangStream(ask, self.kinds, response)

    def close(self) -> None:
        """See `StreamingEngine.close`."""
        self._http.clear()


def _events(response: Any) -> Iterator[dict[str, Any]]:
    """The JSON of each `data:` line, up to `[DONE]`.

    Raises:
        ValueError: a line is no JSON object, or too long.
    """
    rest = b""
    while chunk := response.read1(2**14):  # what is there; `stream` would wait for all of so many bytes
        rest += chunk
        *lines, rest = rest.split(b"\n")
        if len(rest) > EVENT_LIMIT:
            raise ValueError(f"an event has more than {EVENT_LIMIT} bytes")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            content = line[5:].strip()
            if content == b"[DONE]":
                return
            event = json.loads(content)
            if not isinstance(event, dict):
                raise ValueError(f"an event is a JSON object, got {content[:100]!r}")
            yield event


def _hang_up(response: Any) -> None:
    """Close a connection, also while another thread reads from it."""
    connection = getattr(response, "_connection", None)
    sock = getattr(connection, "sock", None)
    if sock is not None:
        with contextlib.suppress(OSError):  # it may be gone already
            sock.shutdown(socket.SHUT_RDWR)
    response.close()
