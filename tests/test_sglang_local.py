"""SGLang in this process: against a stub true to its protocol always, against the real one where it is installed.

The real one: see tests/test_sglang.py, and run `python -m pytest -m slow tests/test_sglang_local.py`.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speechlm.engines.base import Generation, Prompt, Sampling, Target
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.engines.open import SGLangLocal
from speechlm.engines.sglang import BadAnswer
from speechlm.engines.sglang_local import SGLangLocalEngine, start
from tests.sglang_stub import KNOWN, NextIds, Stub, answer
from tests.test_engines import GREEDY, TARGET, by_key, prompts
from tests.test_sglang import VOCAB, count_up, greedy_of, target_lm


class LocalStub(Stub):
    """What `sglang.Engine` does with `async_generate`, its accidents included."""

    def __init__(self, next_ids: NextIds) -> None:
        super().__init__(next_ids, VOCAB)
        self.loop = asyncio.new_event_loop()
        self.at_work = self.cancelled = 0

    async def async_generate(
        self, *, input_ids: list[list[int]], sampling_params: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        self.requests.append({"input_ids": input_ids})
        self.at_work += 1
        try:
            await asyncio.sleep(0.001 * (len(self.requests) % 3))  # answers come in another order
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_work -= 1
        if self.failures:
            raise ValueError(f"injected {self.failures.pop()}")
        if any(set(one) - KNOWN for one in sampling_params):
            raise TypeError("unexpected keyword argument")
        if any(not 0 <= i < self.vocab_size for ids in input_ids for i in ids):
            self.dead = True
            raise ValueError("out of vocabulary")
        return [answer(self, ids, one) for ids, one in zip(input_ids, sampling_params, strict=True)]


@pytest.fixture
def stub() -> Iterator[LocalStub]:
    one = LocalStub(count_up)
    yield one
    assert one.at_work == 0
    one.loop.close()


def engine(stub: LocalStub, in_flight: int = 3) -> SGLangLocalEngine:
    return SGLangLocalEngine(stub, TARGET, VOCAB, max_length=64, group=4, in_flight=in_flight)


def check_agreement(there: dict[str, Generation], work: list[Prompt]) -> None:
    """What SGLang did not fill with text is what the other engine generates."""
    here = by_key(HuggingFaceEngine(target_lm(), TARGET, slots=4, max_length=64), work, GREEDY)
    sent_text = {key for key, one in there.items() if one.finish == "invalid"}
    assert len(there) == len(work) and len(sent_text) < len(work) / 2
    assert all(there[key] == here[key] for key in there if key not in sent_text)


def test_greedy_ids_agree_with_the_other_engine_in_this_process(stub: LocalStub):
    stub.next_ids, work = greedy_of(target_lm()), prompts(24)
    check_agreement(by_key(engine(stub), work, GREEDY), work)


def test_every_prompt_is_asked_and_answered_once(stub: LocalStub):
    found = by_key(engine(stub), prompts(101), Sampling(seed=1))
    assert len(found) == 101 == sum(len(request["input_ids"]) for request in stub.requests)


def test_an_id_outside_the_vocabulary_is_never_handed_over(stub: LocalStub):
    with pytest.raises(ValueError, match=r"has id 64, outside \[0, 64\)"):
        list(engine(stub).generate([*prompts(8), Prompt("bad", (64,), 5)], GREEDY))
    assert not stub.dead


def test_a_group_that_fails_is_tried_again_and_given_up_in_the_end(stub: LocalStub):
    stub.failures = [1, 2]
    assert len(by_key(engine(stub), prompts(8), GREEDY)) == 8
    assert len(stub.requests) == 2 + 2
    stub.failures = [3] * 50
    with pytest.raises(BadAnswer, match=r"5 tries failed for prompts 'p0' to 'p3'.*injected 3"):
        by_key(engine(stub, in_flight=1), prompts(8), GREEDY)


def test_prompts_are_drawn_as_room_appears_and_work_that_nobody_waits_for_is_ended(stub: LocalStub):
    drawn: list[int] = []

    def endless() -> Iterator[Prompt]:
        for n in range(100_000):
            drawn.append(n)
            yield Prompt(str(n), (1, 2), max_new=3)

    generations = engine(stub).generate(endless(), Sampling())
    for _ in range(20):
        next(generations)
    assert len(drawn) <= 20 + 3 * 4 + 4
    generations.close()
    assert stub.cancelled > 0


def test_without_sglang_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(ValueError, match=r"pip install 'speechlm\[sglang\]', or start a server"):
        start("m", 64, "cpu", "float32", {})


def test_it_is_started_without_code_of_the_folder_and_settings_can_not_change_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, Any] = {}
    fake = SimpleNamespace(Engine=lambda **settings: asked.update(settings) or LocalStub(count_up))
    monkeypatch.setitem(sys.modules, "sglang", fake)
    target_lm().save_pretrained(tmp_path)
    settings = SGLangLocal(max_length=64, settings={"mem_fraction_static": 0.5})
    opened = settings.open(str(tmp_path), TARGET, "cuda:3")
    assert len(by_key(opened, prompts(5), GREEDY)) == 5
    assert asked["trust_remote_code"] is False and asked["skip_tokenizer_init"] is True
    assert (asked["device"], asked["base_gpu_id"], asked["context_length"]) == ("cuda", 3, 64)
    assert asked["mem_fraction_static"] == 0.5
    with pytest.raises(ValueError, match="trust_remote_code, which the engine's own arguments decide"):
        SGLangLocal(settings={"trust_remote_code": True}).open(str(tmp_path), Target(40, 23, 7), "cpu")


@pytest.mark.slow
def test_the_real_one_agrees_too(tmp_path: Path):
    python = os.environ.get("SPEECHLM_SGLANG_PYTHON")
    if not python:
        pytest.skip("SPEECHLM_SGLANG_PYTHON is not set")
    target_lm().save_pretrained(tmp_path / "lm")
    work, gpu = prompts(24), torch.cuda.is_available()
    settings: dict[str, Any] = {"mem_fraction_static": 0.2, "max_total_tokens": 4096}
    settings |= {} if gpu else {"attention_backend": "torch_native", "grammar_backend": "none"}
    asked = {"prompts": work, "vocab_size": VOCAB, "max_length": 64, "settings": settings}
    asked |= {"target": [TARGET.first, TARGET.count, TARGET.stop], "device": "cuda" if gpu else "cpu"}
    (tmp_path / "work.json").write_text(json.dumps(asked), encoding="utf-8")
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("SPEECHLM_SGLANG_PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, str(root / "tests/sglang_local_script.py"), str(tmp_path / "lm"), str(tmp_path / "work.json")]
    said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, check=False)
    assert "GENERATIONS " in said.stdout, said.stderr[-3000:]
    for found in json.loads(said.stdout.split("GENERATIONS ", 1)[1]):
        check_agreement({key: Generation(key, tuple(ids), finish) for key, ids, finish in found}, work)
