"""A server that speaks `/generate` as SGLang 0.5 does, habits that bite included, over a tiny model or any function."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: ids in, and how many new ones, to the ids that follow
NextIds = Callable[[list[int], int], list[int]]

KNOWN = {
    "max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "ignore_eos",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "skip_special_tokens", "sampling_seed", "n", "logit_bias",
}  # fmt: skip


class Stub:
    """What a test may set and see."""

    def __init__(self, next_ids: NextIds, vocab_size: int, api_key: str = "") -> None:
        self.next_ids, self.vocab_size, self.api_key = next_ids, vocab_size, api_key
        self.dead = False  # an id outside the vocabulary has ended it, as it ends the real one
        self.failures: list[int] = []  # statuses for the next requests, before any work is done
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.url = ""


def answer(stub: Stub, ids: list[int], params: dict[str, Any]) -> dict[str, Any]:
    """One generation, ended as the real server ends it: the matched stop id is part of the output."""
    new = stub.next_ids(ids, params.get("max_new_tokens", 128))
    stops = params.get("stop_token_ids") or []
    cut = next((n for n, i in enumerate(new) if i in stops), None)
    reason: dict[str, Any] = {"type": "length", "length": len(new)}
    if cut is not None:
        new, reason = new[: cut + 1], {"type": "stop", "matched": new[cut]}
    return {"output_ids": new, "meta_info": {"id": "x", "finish_reason": reason, "completion_tokens": len(new)}}


class Handler(BaseHTTPRequestHandler):
    stub: Stub

    def log_message(self, *args: object) -> None:
        return

    def reply(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allowed(self) -> bool:
        if self.stub.dead:
            self.close_connection = True
            self.connection.close()
            return False
        if self.stub.api_key and self.headers.get("Authorization") != f"Bearer {self.stub.api_key}":
            self.reply(401, {"error": "Unauthorized"})
            return False
        return True

    def do_GET(self) -> None:
        if self.allowed():
            self.reply(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        stub = self.stub
        with stub.lock:
            stub.requests.append(body)
            failure = stub.failures.pop(0) if stub.failures else 0
        if failure:
            self.reply(failure, {"error": {"message": "injected"}})
            return
        params = body["sampling_params"]
        if any(set(one) - KNOWN for one in params):
            self.reply(500, "Internal Server Error")
            return
        if any(not 0 <= i < stub.vocab_size for ids in body["input_ids"] for i in ids):
            stub.dead = True
            self.connection.close()
            return
        self.reply(200, [answer(stub, ids, one) for ids, one in zip(body["input_ids"], params, strict=True)])


@contextmanager
def serving(next_ids: NextIds, vocab_size: int, api_key: str = "") -> Iterator[Stub]:
    """A stub on a port of its own, until the block ends."""
    stub = Stub(next_ids, vocab_size, api_key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
