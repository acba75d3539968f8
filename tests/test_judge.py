"""A judge over the network: what it says is read strictly, and whatever it does wrong has a name."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from speechlm.evals.items import Unusable
from speechlm.evals.judge import GENERAL, KNOWLEDGE, Judge, judgment_of, rating_of


class Answers(BaseHTTPRequestHandler):
    """Gives (status, body, seconds to wait) one after the other."""

    waiting: list[tuple[int, Any, float]]
    seen: list[tuple[dict[str, str], dict[str, Any]]]

    def log_message(self, *args: object) -> None:
        return

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((dict(self.headers), body))
        status, content, wait = self.waiting.pop(0)
        time.sleep(wait)
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def completion(text: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@contextmanager
def serving(*answers: tuple[int, Any, float]) -> Iterator[tuple[str, list[Any]]]:
    handler = type("Bound", (Answers,), {"waiting": list(answers), "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", handler.seen  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def test_it_asks_with_the_model_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with serving((200, completion("fine [[8]]"), 0)) as (url, seen):
        said = Judge(url, "some-model", "JUDGE_KEY").ask("how good?")
    assert rating_of(said) == 8.0
    headers, body = seen[0]
    assert headers["Authorization"] == "Bearer secret" and body["model"] == "some-model" and body["temperature"] == 0.0
    assert body["messages"] == [{"role": "user", "content": "how good?"}]


def test_an_overloaded_judge_is_asked_again() -> None:
    with serving((429, {}, 0), (503, {}, 0), (200, completion("[[3]]"), 0)) as (url, seen):
        assert Judge(url, pause_sec=0.01, attempts=3).ask("x") == "[[3]]"
        assert len(seen) == 3


@pytest.mark.parametrize(
    ("answer", "reason", "asked"),
    [
        ((400, {"error": "no such model"}, 0), r"judge refused \(400\)", 1),
        ((500, {}, 0), r"judge refused \(500\)", 2),
        ((200, {"choices": []}, 0), "judge did not answer", 2),
        ((200, completion(None), 0), "judge did not answer", 2),
        ((200, b"<html>", 0), "judge did not answer", 2),
        ((200, completion("[[3]]"), 1.0), "judge timed out", 2),
    ],
)
def test_a_judge_that_fails_has_a_reason(answer: tuple[int, Any, float], reason: str, asked: int) -> None:
    with serving(answer, answer) as (url, seen):
        with pytest.raises(Unusable) as stopped:
            Judge(url, timeout_sec=0.3, attempts=2, pause_sec=0.01).ask("x")
        assert len(seen) == asked
    assert re.fullmatch(reason, stopped.value.reason)


def test_nobody_at_the_address_is_no_score() -> None:
    with pytest.raises(Unusable):
        Judge("http://127.0.0.1:9/v1", attempts=1, timeout_sec=1.0).ask("x")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("I like it", "judge gave no rating"),
        ("8/10", "judge gave no rating"),
        ("[[7]] or rather [[8]]", "judge gave several ratings"),
        ("[[11]]", "judge's rating is out of range"),
        ("[[0]]", "judge's rating is out of range"),
        ("", "judge gave no rating"),
    ],
)
def test_nonsense_is_no_rating(said: str, reason: str) -> None:
    with pytest.raises(Unusable) as stopped:
        rating_of(said)
    assert stopped.value.reason == reason


def test_ratings_are_read() -> None:
    assert rating_of("Good. [[7]] I repeat, [[7]]") == 7.0 and rating_of("[[ 7.5 ]]") == 7.5


@pytest.mark.parametrize("said", ["yes", "{}", '{"judgment": "maybe"}', '["correct"]', '{"judgment": true}', "correct"])
def test_nonsense_is_no_judgment(said: str) -> None:
    with pytest.raises(Unusable):
        judgment_of(said)


def test_judgments_are_read_even_in_a_fence() -> None:
    assert judgment_of('{"analysis": "x", "judgment": "correct"}') == 1.0
    assert judgment_of('```json\n{"judgment": "incorrect"}\n```') == 0.0


def test_prompts_take_what_they_need() -> None:
    filled = [p.format(instruction="Q", reply="{A}", references="R") for p in (GENERAL, KNOWLEDGE)]
    assert all("Q" in text and "{A}" in text for text in filled) and '{"analysis"' in filled[1]
