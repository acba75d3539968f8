"""The SGLang engine: against a stub true to the protocol always, against the real server where one is installed.

The real one: set SPEECHLM_SGLANG_PYTHON to the interpreter of an environment that has sglang, and SPEECHLM_SGLANG_PYTHONPATH to
what that needs on its path, and run `python -m pytest -m slow tests/test_sglang.py`.
"""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import torch

from speechlm.engines import replicas as replicas_module
from speechlm.engines.base import Generation, Prompt, Sampling
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.engines.replicas import NoServer
from speechlm.engines.sglang import BadAnswer, SGLangEngine, generation
from tests.sglang_stub import Stub, serving
from tests.test_engines import GREEDY, TARGET, by_key, prompts, tiny_lm

VOCAB = 64


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replicas_module, "BACKOFF_SEC", (0.01, 0.05))


def target_lm() -> torch.nn.Module:
    """A model that prefers the target's ids by itself, as a trained one does."""
    model = tiny_lm()
    with torch.no_grad():
        allowed = torch.zeros(VOCAB, dtype=torch.bool)
        allowed[TARGET.first : TARGET.first + TARGET.count] = allowed[TARGET.stop] = True
        model.lm_head.weight[~allowed] = 0
        model.lm_head.weight[allowed] += 0.0
    return model


def greedy_of(model: torch.nn.Module):
    @torch.no_grad()
    def next_ids(ids: list[int], count: int) -> list[int]:
        new: list[int] = []
        for _ in range(count):
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        return new

    return next_ids


def count_up(ids: list[int], count: int) -> list[int]:
    return [TARGET.first + (ids[0] + n) % TARGET.count for n in range(count)]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(count_up, VOCAB) as one:
        yield one


def engine(*stubs: Stub, **settings: float) -> SGLangEngine:
    return SGLangEngine([one.url for one in stubs], TARGET, VOCAB, max_length=64, group=4, **settings)


def check_agreement(url: str) -> None:
    """The claim that both servers are held to."""
    work = prompts(24)
    there = by_key(SGLangEngine([url], TARGET, VOCAB, max_length=64, group=4), work, GREEDY)
    here = by_key(HuggingFaceEngine(target_lm(), TARGET, slots=4, max_length=64), work, GREEDY)
    sent_text = {key for key, one in there.items() if one.finish == "invalid"}
    assert len(sent_text) < len(work) / 2
    assert {key: one for key, one in there.items() if key not in sent_text} == {
        key: one for key, one in here.items() if key not in sent_text
    }


def test_greedy_ids_agree_with_the_engine_in_this_process():
    with serving(greedy_of(target_lm()), VOCAB) as one:
        check_agreement(one.url)


def test_every_prompt_is_answered_once_by_some_replica(stub: Stub):
    with serving(count_up, VOCAB) as second:
        found = by_key(engine(stub, second), prompts(100), GREEDY)
        assert all(one.finish == "length" for one in found.values())
        sent = [len(request["input_ids"]) for one in (stub, second) for request in one.requests]
        assert sum(sent) == 100
        assert stub.requests
        assert second.requests


@pytest.mark.parametrize("status", [500, 503])
def test_only_what_failed_is_sent_again(stub: Stub, status: int):
    stub.failures = [status, status]
    found = by_key(engine(stub), prompts(40), GREEDY)
    assert len(found) == 40
    assert len(stub.requests) == 10 + 2


def test_a_dead_replica_loses_nothing_and_is_named_once(stub: Stub, caplog: pytest.LogCaptureFixture):
    with serving(count_up, VOCAB) as second:
        second.dead = True
        assert len(by_key(engine(stub, second), prompts(60), GREEDY)) == 60
        assert [record.getMessage().split(" (")[0] for record in caplog.records] == [f"{second.url} does not answer"]


def test_when_all_replicas_stay_away_the_run_stops_and_says_why(stub: Stub):
    stub.dead = True
    with pytest.raises((NoServer, BadAnswer), match=r"http://127\.0\.0\.1|tries failed"):
        by_key(engine(stub, patience_sec=0.2), prompts(3), GREEDY)


def test_prompts_that_no_server_can_do_end_the_run(stub: Stub):
    stub.failures = [500] * 50
    with pytest.raises(BadAnswer, match=r"5 tries failed for prompts 'p0' to 'p2'.*injected"):
        by_key(engine(stub), prompts(3), GREEDY)


def test_an_id_that_would_end_the_server_is_never_sent(stub: Stub):
    with pytest.raises(ValueError, match=r"has id 64, outside \[0, 64\)"):
        by_key(engine(stub), [Prompt("a", (64,), 5)], GREEDY)
    assert not stub.dead
    assert not stub.requests


def test_the_stub_has_the_habits_of_the_real_server(stub: Stub):
    def post(params: dict[str, object], ids: list[int]) -> int:
        body = json.dumps({"input_ids": [ids], "sampling_params": [params]}).encode()
        request = urllib.request.Request(stub.url + "/generate", body, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=5).status

    assert post({"max_new_tokens": 2}, [1]) == 200
    with pytest.raises(urllib.error.HTTPError, match="500"):
        post({"no_such_parameter": 1}, [1])
    with pytest.raises(OSError, match=r".*"):
        post({"max_new_tokens": 2}, [VOCAB])
    with pytest.raises(OSError, match=r".*"):  # and now it is gone for everybody
        post({"max_new_tokens": 2}, [1])


def test_the_key_is_sent_and_other_machines_need_one(monkeypatch: pytest.MonkeyPatch):
    with serving(count_up, VOCAB, api_key="secret") as one:
        monkeypatch.setenv("SGLANG_API_KEY", "secret")
        assert len(by_key(engine(one), prompts(5), GREEDY)) == 5
    monkeypatch.delenv("SGLANG_API_KEY")
    with pytest.raises(ValueError, match="is another machine; start its server with --api-key"):
        SGLangEngine(["http://gpu-7:30000"], TARGET, VOCAB)
    with pytest.raises(ValueError, match="is no address of a server"):
        SGLangEngine(["gpu-7:30000"], TARGET, VOCAB)


def test_the_queue_of_open_requests_is_bounded(stub: Stub):
    drawn: list[int] = []

    def endless():
        for n in range(100_000):
            drawn.append(n)
            yield Prompt(str(n), (1, 2), max_new=3)

    generations = engine(stub, in_flight=2).generate(endless(), Sampling())
    for _ in range(20):
        next(generations)
    assert len(drawn) <= 20 + 4 * 2 + 4


def test_text_among_speech_is_dropped():
    prompt = Prompt("a", (1,), 5)

    def given(ids: list[int], kind: str = "length") -> Generation:
        return generation(prompt, {"output_ids": ids, "meta_info": {"finish_reason": {"type": kind}}}, TARGET)

    assert given([40, 62]) == Generation("a", (40, 62), "length")
    assert given([40, 62, 7], "stop") == Generation("a", (40, 62), "stop")
    for ids in ([40, 3], [40, 63], [40, 7, 41], [40, -1]):
        assert given(ids) == Generation("a", (), "invalid")
    assert given([40, 3], "stop").finish == "invalid"  # ended by an id of the model's own
    with pytest.raises(BadAnswer, match="gave up"):
        given([], "abort")
    with pytest.raises(BadAnswer, match="without output_ids"):
        generation(prompt, {"text": "?"}, TARGET)


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = os.environ.get("SPEECHLM_SGLANG_PYTHON")
    if not python:
        pytest.skip("SPEECHLM_SGLANG_PYTHON is not set")
    folder = tmp_path_factory.mktemp("lm")
    target_lm().save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "sglang.launch_server", "--model-path", str(folder), "--skip-tokenizer-init"]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--mem-fraction-static",
        "0.2",
        "--max-total-tokens",
        "4096",
    ]
    command += ["--dtype", "float32"]
    if not torch.cuda.is_available():
        command += ["--device", "cpu", "--attention-backend", "torch_native", "--grammar-backend", "none"]
    path = os.environ.get("SPEECHLM_SGLANG_PYTHONPATH", "")
    env = {**os.environ, "PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=env)
    try:
        yield wait_for(f"http://127.0.0.1:{port}", server)
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> str:
    until = time.monotonic() + 300
    while time.monotonic() < until and server.poll() is None:
        try:
            if urllib.request.urlopen(url + "/health", timeout=30).status == 200:
                return url
        except OSError:
            time.sleep(1)
    raise AssertionError(f"the server did not come up (exit {server.poll()})")


@pytest.mark.slow
def test_the_real_server_agrees_too(real_server: str):
    check_agreement(real_server)
