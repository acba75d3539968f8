"""Replies from a server that streams as SGLang's does, its ends and accidents included."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from speechlm.engines.base import Sampling
from speechlm.engines.id_kinds import IdKinds
from speechlm.engines.sglang_stream import SGLangStreams
from speechlm.engines.streaming import Ask, EngineBusy, EngineFailed, ReplyForm
from speechlm.tokens.vocab import Vocab

VOCAB = Vocab(num_text=10, num_speech=8)
END, SPEECH = VOCAB.control("<|user|>"), VOCAB.speech_offset
STOP, LENGTH = {"type": "stop", "matched": END}, {"type": "length", "length": 3}


class Server(ThreadingHTTPServer):
    """Answers with the events a test sets."""

    daemon_threads = True
    events: list[Any]
    status = 200
    hang_sec = 0.0
    chunked = False
    asked: Any = None
    gone = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        return

    def do_POST(self) -> None:
        server = self.server
        server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.protocol_version = "HTTP/1.1" if server.chunked else "HTTP/1.0"
        self.close_connection = True
        self.send_response(server.status)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in server.events:
                if event == "hang":
                    for _ in range(round(server.hang_sec / 0.05)):
                        time.sleep(0.05)
                        self.write(b": still here\n\n" if server.hang_sec > 3 else b"")
                    continue
                text = event if isinstance(event, str) else json.dumps(event)
                self.write(f"data: {text}\n\n".encode())
            if server.chunked:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            server.gone.set()

    def write(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if self.server.chunked else data)
            self.wfile.flush()


@pytest.fixture(params=[False, True], ids=["plain", "chunked"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.gone.clear()
    server.chunked = request.param
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def engine_of(server: Server, stall_sec: float = 5.0) -> SGLangStreams:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return SGLangStreams(url, IdKinds(VOCAB, specials=[3]), len(VOCAB), 64, stall_sec=stall_sec)


def event(ids: list[int], total: int, reason: Any = None) -> dict[str, Any]:
    return {"output_ids": ids, "meta_info": {"completion_tokens": total, "finish_reason": reason}}


ASK = Ask("one", [1, 2, 4], ReplyForm(END, 2, 3), Sampling(temperature=0.0), 8)
SAID = [5, 6, SPEECH, SPEECH + 7, SPEECH + 1]
CUMULATIVE = [event(SAID[:1], 1), event(SAID[:3], 3), event([*SAID, END], 6, STOP), "[DONE]"]
ONLY_NEW = [event(SAID[:1], 1), event(SAID[1:3], 3), event([*SAID[3:], END], 6, STOP), "[DONE]"]


@pytest.mark.parametrize("events", [CUMULATIVE, ONLY_NEW], ids=["all so far", "only new"])
def test_each_id_comes_once_whichever_way_the_server_streams(server: Server, events: list[Any]):
    server.events = events
    stream = engine_of(server).open(ASK)
    assert list(stream) == SAID and stream.end == "stop"
    assert server.asked["stream"] is True and server.asked["input_ids"] == [1, 2, 4]
    assert server.asked["sampling_params"]["stop_token_ids"] == [END]


def test_a_reply_that_reaches_its_longest_says_so(server: Server):
    server.events = [event(SAID[:3], 3, LENGTH), "[DONE]"]
    stream = engine_of(server).open(ASK)
    assert list(stream) == SAID[:3] and stream.end == "length"


@pytest.mark.parametrize("odd", [-1, 3, VOCAB.num_text, len(VOCAB), 10**9])
def test_an_id_that_no_reply_has_ends_it_and_is_not_handed_on(server: Server, odd: int):
    server.events = [event([5, 6, odd, 7], 4), event([5, 6, odd, 7, 8], 5)]
    stream = engine_of(server).open(ASK)
    assert list(stream) == [5, 6] and stream.end == "invalid"


BROKEN: list[list[Any]] = [
    [event([5], 1)],
    [event([5], 1), "{"],
    [event([5], 1), "[]"],
    [event([5], 1), {"error": {"message": "out of memory"}}],
    [event([5], 1), event([5], 1, {"type": "abort", "message": "killed"})],
    [event([5], 1), event([5, "x"], 2)],  # type: ignore[list-item]
]


@pytest.mark.parametrize("events", BROKEN, ids=["hangs up", "no json", "no event", "error", "abort", "no ids"])
def test_a_server_that_breaks_off_is_an_error_after_what_was_said(server: Server, events: list[Any]):
    server.events = events
    stream = engine_of(server).open(ASK)
    assert next(stream) == 5
    with pytest.raises(EngineFailed):
        next(stream)
    assert list(stream) == []
    server.events = CUMULATIVE
    assert list(engine_of(server).open(ASK)) == SAID, "the next reply is right"


def test_a_server_that_stalls_is_an_error_in_bounded_time(server: Server):
    server.events, server.hang_sec = [event([5], 1), "hang"], 3.0
    stream = engine_of(server, stall_sec=0.5).open(ASK)
    assert next(stream) == 5
    began = time.monotonic()
    with pytest.raises(EngineFailed):
        next(stream)
    assert time.monotonic() - began < 2.5


def test_who_closes_a_reply_stops_the_server_and_whoever_waits(server: Server):
    server.events, server.hang_sec = [event([5], 1), "hang"], 20.0
    stream = engine_of(server, stall_sec=30.0).open(ASK)
    assert next(stream) == 5
    threading.Timer(0.3, stream.close).start()
    began = time.monotonic()
    assert list(stream) == [] and stream.end == "interrupted" and time.monotonic() - began < 5
    assert server.gone.wait(10), "the connection is gone, by which the server knows"


def test_no_server_and_a_full_one_are_told_apart(server: Server):
    server.events, server.status = [], 503
    with pytest.raises(EngineBusy):
        engine_of(server).open(ASK)
    server.status = 500
    with pytest.raises(EngineFailed, match="500"):
        engine_of(server).open(ASK)
    with pytest.raises(EngineFailed, match="no SGLang server"):
        SGLangStreams("http://127.0.0.1:9", IdKinds(VOCAB), len(VOCAB)).open(ASK)
    with pytest.raises(ValueError, match="another machine"):
        SGLangStreams("http://example.com", IdKinds(VOCAB), len(VOCAB))
    with pytest.raises(ValueError, match="outside"):
        engine_of(server).open(ASK._replace(ids=[len(VOCAB)]))
