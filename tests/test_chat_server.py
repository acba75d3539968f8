"""The server, over real sockets: OpenAI's own client, live voice, and everything a stranger can throw at it."""

import asyncio
import base64
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf
from openai import AsyncOpenAI, AuthenticationError, OpenAI

from speechlm.engines.streaming import EngineFailed, Kind, Progress
from speechlm.serving.session import VoiceSession
from speechlm.serving.voice import Voice
from speechlm.serving.web.settings import ServerSettings
from tests.tiny_chat import Running, serving, speech, tiny_voice

KEY = "a-key-for-tests"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def voice(bundle: Path) -> Iterator[Voice]:
    voice = tiny_voice(bundle, stall_sec=5.0)
    yield voice
    voice.close()


@pytest.fixture(scope="module")
def server(voice: Voice) -> Iterator[Running]:
    with serving(voice, api_key=KEY, body_bytes=2**20, body_sec=20, header_sec=20, replies=2, requests=24) as running:
        yield running


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60)


def audio_part(seconds: float = 1.0, seed: int = 0, name: str = "wav", rate_hz: int = 16_000) -> dict[str, Any]:
    file = io.BytesIO()
    sf.write(file, speech(seconds, rate_hz, seed), rate_hz, format=name.upper())
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file.getvalue()).decode(), "format": name}}


def spoken(part: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [part]}


def ask(server: Running, body: Any, key: str = KEY, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers["Content-Type"] = "application/json"
    return httpx.post(server.url + CHAT, content=content, headers=headers, timeout=60, **more)


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "random", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, **changes}


def right_afterwards(server: Running) -> None:
    """The next request is answered, by the same ids as ever."""
    until = time.monotonic() + 20
    while (answer := ask(server, request())).status_code == 429 and time.monotonic() < until:
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0


# ---- the official client --------------------------------------------------------------------------------------------


def test_the_official_client_hears_a_whole_reply_and_a_second_turn_names_the_first(client: OpenAI, voice: Voice):
    assert [model.id for model in client.models.list()] == ["random"]
    modalities: Any = ["text", "audio"]
    first = client.chat.completions.create(
        model="random", modalities=modalities, audio={"voice": "x", "format": "wav"}, messages=[spoken(audio_part())]
    )
    message = first.choices[0].message
    assert (
        message.audio is not None and message.content is None and first.choices[0].finish_reason in ("stop", "length")
    )
    sound, rate = sf.read(io.BytesIO(base64.b64decode(message.audio.data)))
    speech_ids = first.usage.completion_tokens - len(voice.text.encode([message.audio.transcript])[0])
    assert rate == 22_050 and abs(len(sound) - speech_ids * 1764) < 10 * 1764 and np.abs(sound).max() > 1e-4
    turns: Any = [
        spoken(audio_part()),
        {"role": "assistant", "audio": {"id": message.audio.id}},
        spoken(audio_part(seed=1)),
    ]
    second = client.chat.completions.create(model="random", modalities=modalities, messages=turns)
    remembered = second.usage.prompt_tokens - 2 * first.usage.prompt_tokens
    assert abs(remembered - first.usage.completion_tokens) <= 2, "the second prompt has the first reply, all of it"


def test_the_official_client_streams_text_and_sound_that_equal_the_whole_reply(client: OpenAI):
    asked: dict[str, Any] = {"model": "random", "messages": [spoken(audio_part())], "modalities": ["text", "audio"]}
    asked |= {"temperature": 0.0, "audio": {"voice": "x", "format": "pcm16"}}
    text, data, ends = "", b"", []
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        if not chunk.choices:
            ends.append(chunk.usage.completion_tokens)
            continue
        audio = getattr(chunk.choices[0].delta, "audio", None)
        text += getattr(audio, "transcript", None) or ""
        data += base64.b64decode(getattr(audio, "data", None) or "")
        ends += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
    whole = client.chat.completions.create(**asked)
    assert ends == [whole.choices[0].finish_reason, whole.usage.completion_tokens]
    assert text == whole.choices[0].message.audio.transcript
    same = np.frombuffer(data, "<i2").astype(int) - np.frombuffer(
        base64.b64decode(whole.choices[0].message.audio.data), "<i2"
    )
    assert len(data) > 10_000 and np.abs(same).max() <= 2


@pytest.mark.parametrize("name", ["mp3", "flac"])
def test_other_sound_formats_go_in_and_out(client: OpenAI, name: str):
    answer = client.chat.completions.create(
        model="random", modalities=["text", "audio"], audio={"voice": "x", "format": name},  # type: ignore[typeddict-item]
        messages=[spoken(audio_part(name=name, rate_hz=44_100))], max_completion_tokens=40, seed=7,
    )  # fmt: skip
    sound, rate = sf.read(io.BytesIO(base64.b64decode(answer.choices[0].message.audio.data)))
    assert rate in (22_050, 24_000) and len(sound) > 1_000


def test_text_alone_is_an_ordinary_completion(client: OpenAI):
    asked: dict[str, Any] = {"model": "random", "messages": [{"role": "user", "content": "hello"}], "seed": 7}
    answer = client.chat.completions.create(**asked, temperature=1.0)
    assert answer.choices[0].message.content and not getattr(answer.choices[0].message, "audio", None)
    pieces = client.chat.completions.create(**asked, temperature=1.0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == answer.choices[0].message.content
    other = client.chat.completions.create(**{**asked, "seed": 8}, temperature=1.0)
    assert other.choices[0].message.content != answer.choices[0].message.content


async def events_of_a_turn(connection: Any, until: str = "response.done") -> list[Any]:
    events = []
    async for event in connection:
        events.append(event)
        assert event.type != "error", event
        if event.type == until:
            return events
    return events


def pcm(seconds: float, rate_hz: int = 24_000, seed: int = 0) -> list[str]:
    data = (speech(seconds, rate_hz, seed) * 32767).astype("<i2").tobytes()
    return [base64.b64encode(data[i : i + 9600]).decode() for i in range(0, len(data), 9600)]


def test_live_voice_replies_to_a_committed_turn_and_remembers_what_was_heard_of_it(server: Running, voice: Voice):
    async def talk() -> tuple[list[Any], list[Any], list[Any]]:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY)
        async with client.realtime.connect(model="random") as live:
            settings: Any = {"input": {"turn_detection": None, "transcription": {"model": "own"}}}
            await live.session.update(session={"type": "realtime", "audio": settings})
            turns = []
            for turn in range(3):
                for piece in pcm(1.0, seed=turn):
                    await live.input_audio_buffer.append(audio=piece)
                await live.input_audio_buffer.commit()
                await live.response.create()
                turns.append(await events_of_a_turn(live))
                if turn == 1:
                    item = next(e.item.id for e in turns[-1] if e.type == "response.output_item.added")
                    await live.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=160)
                    await events_of_a_turn(live, "conversation.item.truncated")
            return turns[0], turns[1], turns[2]

    first, second, third = asyncio.run(talk())
    kinds = [event.type for event in first]
    order = ["session.created", "session.updated", "input_audio_buffer.committed", "response.created",
             "response.output_item.added", "response.output_audio_transcript.delta", "response.output_audio.delta",
             "response.output_audio.done", "response.output_item.done", "response.done"]  # fmt: skip
    assert [kind for kind in dict.fromkeys(kinds) if kind in order] == order
    said = "".join(event.delta for event in first if event.type == "response.output_audio_transcript.delta")
    assert said == next(e.transcript for e in first if e.type == "response.output_audio_transcript.done") != ""
    data = b"".join(base64.b64decode(e.delta) for e in first if e.type == "response.output_audio.delta")
    assert len(data) / 2 / 24_000 > 0.5 and first[-1].response.status in ("completed", "incomplete")
    before, after, cut = (turn[-1].response.usage for turn in (first, second, third))
    assert after.input_tokens > before.input_tokens + before.output_tokens - 2, "the second turn has the first"
    whole = after.input_tokens + after.output_tokens
    assert cut.input_tokens < whole + before.input_tokens, "160 ms of the second reply were heard, and no more is kept"
    assert first[-1].response.timings["total_ms"] > 0


def test_live_voice_finds_turns_by_itself_and_is_interrupted_by_speech(
    server: Running, voice: Voice, monkeypatch: pytest.MonkeyPatch
):
    # The reply neither ends by itself nor gets further than 80 ids before it is interrupted, however fast the machine is.
    interrupted, ids, step, allowed = threading.Event(), iter(range(80)), voice.engine._lm.step, Progress.allowed.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Progress, "allowed", property(lambda self: allowed(self) & ~Kind.END))
    monkeypatch.setattr(
        voice.engine._lm,  # type: ignore[attr-defined]
        "step",
        lambda *args: (next(ids, None) is not None or interrupted.wait(4)) and step(*args),
    )

    async def talk() -> list[Any]:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY)
        async with client.realtime.connect(model="random") as live:
            silence = base64.b64encode(bytes(2 * 4800)).decode()
            for piece in [silence] * 3 + pcm(1.0) + [silence] * 5:
                await live.input_audio_buffer.append(audio=piece)
            events = await events_of_a_turn(live, "response.output_audio.delta")
            for piece in pcm(0.6, seed=3):
                await live.input_audio_buffer.append(audio=piece)
            events += await events_of_a_turn(live, "input_audio_buffer.speech_started")
            interrupted.set()
            return events + await events_of_a_turn(live)

    events = asyncio.run(talk())
    kinds = [event.type for event in events]
    borders = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed"]
    assert [kind for kind in kinds if kind.startswith("input_audio_buffer")] == [*borders, borders[0]]
    started, stopped = (next(e for e in events if e.type == kind) for kind in borders[:2])
    assert abs(started.audio_start_ms - 600) < 100 and abs(stopped.audio_end_ms - 1600) < 150
    done = events[-1].response
    assert done.status == "cancelled" and done.status_details.reason == "turn_detected"


def test_live_voice_survives_events_that_make_no_sense(server: Running):
    import websockets.sync.client as ws

    url = server.url.replace("http", "ws") + "/v1/realtime?model=random"
    with ws.connect(url, subprotocols=["realtime", f"openai-insecure-api-key.{KEY}"]) as live:  # type: ignore[list-item]
        assert json.loads(live.recv())["type"] == "session.created"
        odd: list[Any] = ["{", "[]", "1", '{"type": 1}', "[" * 5000, {"type": "no.such"}, {"type": "session.update"},
               {"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 16001}}}}},
               {"type": "session.update", "session": {"nonsense": 1}},
               {"type": "session.update", "session": {"temperature": 1e9}},
               {"type": "input_audio_buffer.append", "audio": "%%%"}, {"type": "input_audio_buffer.append", "audio": "AA=="},
               {"type": "input_audio_buffer.append"}, {"type": "input_audio_buffer.commit"}, {"type": "response.create"},
               {"type": "response.create", "response": {"max_output_tokens": -1}}, {"type": "response.cancel"},
               {"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": -1},
               {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [1]}},
               ]  # fmt: skip
        for event in odd:
            live.send(event if isinstance(event, str) else json.dumps(event))
            answers = [json.loads(live.recv(timeout=20))]
            if answers[-1]["type"] == "response.created":  # nothing was said yet: it fails as a reply
                answers.append(json.loads(live.recv(timeout=20)))
                assert answers[-1]["response"]["status"] == "failed"
            else:
                assert answers[-1]["type"] == "error" and answers[-1]["error"]["message"], event
    right_afterwards(server)


# ---- strangers ------------------------------------------------------------------------------------------------------


def test_a_wrong_key_opens_nothing(server: Running):
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    for key in ("", "wrong", KEY[:-1], KEY + "x", "é"):
        headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
        assert httpx.post(server.url + CHAT, content=b"x" * 2**19, headers=headers).status_code == 401
    assert httpx.get(server.url + "/").status_code == 200 and httpx.get(server.url + "/health").status_code == 200
    page = httpx.get(
        server.url + "/v1/models", headers={"Authorization": f"Bearer {KEY}", "Origin": "http://evil.example"}
    )
    assert page.status_code == 403


def test_live_voice_needs_the_key_and_the_pages_own_origin(server: Running):
    import websockets.exceptions
    import websockets.sync.client as ws

    url = server.url.replace("http", "ws") + "/v1/realtime"
    for settings in ({}, {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]},
                     {"additional_headers": {"Authorization": f"Bearer {KEY}"}, "origin": "http://evil.example"}):  # fmt: skip
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            ws.connect(url, **settings)  # type: ignore[arg-type]
        assert refused.value.response.status_code in (401, 403)


def test_a_server_for_other_machines_needs_a_key():
    with pytest.raises(ValueError, match="--api_key_env"):
        ServerSettings(host="0.0.0.0")
    ServerSettings(host="0.0.0.0", api_key=KEY)


def hour_of_audio(name: str) -> str:
    """An hour that is small as a file."""
    file = io.BytesIO()
    sf.write(file, np.zeros(3600 * 8000, np.int16), 8000, format=name)
    return base64.b64encode(file.getvalue()).decode()


ABSURD: list[tuple[Any, int]] = [
    (b"{", 422),
    (b"\xff\xfe", 422),
    (b"", 422),
    (b"[" * 100_000, 400),
    ([], 422),
    (request(messages=[]), 422),
    (request(max_tokens=-1), 422),
    (request(max_tokens=10**9), 422),
    (request(max_tokens="many"), 422),
    (request(temperature=-1), 422),
    (request(temperature=1e9), 422),
    (request(top_p=0), 422),
    (request(n=5), 422),
    (request(no_such_parameter=1), 422),
    (request(seed=2**70), 422),
    (request(modalities=["video"]), 422),
    (request(model="another"), 404),
    (request(messages=[{"role": "user", "content": ""}]), 422),
    (request(messages=[{"role": "nobody", "content": "x"}]), 422),
    (request(messages=[{"role": "user", "content": "x" * 1000}]), 422),
    (request(messages=[{"role": "user", "content": "x"}] * 300), 422),
    (request(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]), 422),
    (request(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "audio": {"id": "gone"}}]), 422),
    (request(audio={"format": "wav"}), 422),
    (request(stream=True, modalities=["audio"], audio={"format": "wav"}), 422),
    (request(messages=[spoken({"type": "input_audio", "input_audio": {"data": "%%%", "format": "wav"}})]), 422),
    (request(messages=[spoken({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})]), 422),
    (request(messages=[spoken({"type": "input_audio", "input_audio": {"data": "PGh0bWw+", "format": "wav"}})]), 422),
    (request(messages=[spoken({"type": "input_audio", "input_audio": {"data": hour_of_audio("FLAC"), "format": "flac"}})]), 413),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status"), ABSURD, ids=lambda value: str(value)[:50])
def test_what_makes_no_sense_is_refused_with_a_reason(server: Running, body: Any, status: int):
    answer = ask(server, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"] and error["type"] and "Traceback" not in answer.text


def test_afterwards_the_server_is_as_before(server: Running):
    right_afterwards(server)


@pytest.mark.parametrize("kind", ["truncated", "nan", "rate", "empty", "cut", "header"])
def test_damaged_sound_is_refused_or_heard_but_never_harms(server: Running, kind: str):
    file = io.BytesIO()
    audio = speech(0.5)
    if kind == "nan":
        sf.write(file, np.where(np.arange(8000) == 5, np.nan, audio), 16_000, format="WAV", subtype="FLOAT")
    else:
        sf.write(file, audio[: 0 if kind == "empty" else None], 16_001 if kind == "rate" else 16_000, format="WAV")
    data = bytearray(file.getvalue())
    data = data[:20] if kind == "cut" else data[: len(data) // 2] if kind == "truncated" else data
    if kind == "header":
        data[40:44] = b"\xff\xff\xff\x7f"  # says that two gigabytes follow
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(bytes(data)).decode(), "format": "wav"}}
    answer = ask(server, request(messages=[spoken(part)]))
    assert answer.status_code in ((200,) if kind == "truncated" else (200, 413, 422) if kind == "header" else (422,)), (
        answer.text
    )
    right_afterwards(server)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_hundred_megabytes_are_refused_with_flat_memory(server: Running):
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(2**20)

    headers = {"Authorization": f"Bearer {KEY}"}
    httpx.post(
        server.url + CHAT, content=bytes(2**20), headers=headers, timeout=30
    )  # what a first request loads for good
    before = resident_bytes()
    said = httpx.post(server.url + CHAT, content=bytes(100 * 2**20), headers=headers, timeout=30)
    unsaid = httpx.post(server.url + CHAT, content=chunks(), headers=headers, timeout=30)  # no Content-Length
    assert said.status_code == unsaid.status_code == 413
    assert resident_bytes() - before < 64 * 2**20  # of 200 that were sent; pieces on their way lie in it
    right_afterwards(server)


def slow(server: Running, head: bytes, trickle: bytes) -> tuple[bytes, float]:
    """What the server says to a client that sends a byte every 0.2 s, and when."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as one:
        one.sendall(head)
        one.settimeout(0.2)
        answer = b""
        while time.monotonic() - began < 20:
            try:
                got = one.recv(4096)
            except TimeoutError:
                try:
                    one.sendall(trickle)
                except OSError:
                    break
                continue
            except OSError:
                break
            answer += got
            if not got:
                break
            if b"408" in answer:
                return answer, time.monotonic() - began
        return answer, time.monotonic() - began


@pytest.mark.parametrize("part", ["nothing", "head", "body"])
def test_who_trickles_is_let_go_while_others_are_served(voice: Voice, part: str):
    with serving(voice, api_key=KEY, body_sec=1.5, header_sec=1.5) as server:
        _trickle(server, part)


def _trickle(server: Running, part: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {KEY}\r\n".encode()
    body = head + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    start = {"nothing": b"", "head": head[:-2], "body": body}[part]
    with ThreadPoolExecutor(12) as pool:
        slows = [pool.submit(slow, server, start, b"" if part == "nothing" else b" ") for _ in range(10)]
        right_afterwards(server)
        for one in slows:
            answer, seconds = one.result()
            assert b"408" in answer and seconds < 8
    right_afterwards(server)


def test_five_hundred_requests_at_once_are_each_answered(server: Running):
    before, threads = resident_bytes(), threading.active_count()

    async def flood() -> list[int]:
        limits = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:
            headers = {"Authorization": f"Bearer {KEY}"}
            calls = [client.post(server.url + CHAT, json=request(max_tokens=4), headers=headers) for _ in range(500)]
            return [answer.status_code for answer in await asyncio.gather(*calls)]

    statuses = asyncio.run(flood())
    assert len(statuses) == 500 and set(statuses) <= {200, 429} and statuses.count(200) >= 2
    assert statuses.count(429) > 0 and threading.active_count() - threads < 70
    assert resident_bytes() - before < 150 * 2**20
    right_afterwards(server)


def test_who_leaves_in_the_middle_of_a_stream_gives_the_place_back(server: Running, voice: Voice):
    body = request(stream=True, modalities=["text", "audio"], audio={"format": "pcm16"}, max_tokens=160)
    for _ in range(6):  # three times the places there are
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.stream("POST", server.url + CHAT, json=body, headers=headers, timeout=30) as answer:
            if answer.status_code == 200:
                next(answer.iter_lines())
        time.sleep(0.3)
    right_afterwards(server)


def test_who_leaves_live_voice_in_the_middle_of_a_reply_gives_the_place_back(server: Running):
    async def leave() -> None:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY)
        async with client.realtime.connect(model="random") as live:
            content: Any = [{"type": "input_text", "text": "hello"}]
            await live.conversation.item.create(item={"type": "message", "role": "user", "content": content})
            await live.response.create()
            await events_of_a_turn(live, "response.output_item.added")

    for _ in range(4):
        asyncio.run(leave())
    right_afterwards(server)


# ---- an engine that fails ---------------------------------------------------------------------------------------------


def test_an_engine_that_dies_fails_its_replies_and_no_others(
    server: Running, voice: Voice, monkeypatch: pytest.MonkeyPatch
):
    def dies(*args: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(voice.engine._lm, "step", dies)  # type: ignore[attr-defined]
        answer = ask(server, request())
        assert answer.status_code == 503 and "out of memory" in answer.json()["error"]["message"]
        lines = ask(server, request(stream=True)).text.splitlines()
        assert any("out of memory" in line for line in lines) and lines[-2:] == ["data: [DONE]", ""]
    right_afterwards(server)


def test_an_engine_that_stalls_is_an_error_in_bounded_time(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    voice = tiny_voice(bundle, stall_sec=1.0)
    free = threading.Event()
    step = voice.engine._lm.step  # type: ignore[attr-defined]
    monkeypatch.setattr(voice.engine._lm, "step", lambda *args: free.wait(30) and step(*args))  # type: ignore[attr-defined]
    with serving(voice) as server:
        began = time.monotonic()
        answer = ask(server, request(), key="")
        assert answer.status_code == 503 and "nothing for 1 s" in answer.text and time.monotonic() - began < 10
        free.set()
        right_afterwards(server)
    voice.close()
    session = VoiceSession(voice)
    session.write("hello")
    with pytest.raises(EngineFailed, match="closed"):
        session.reply()
