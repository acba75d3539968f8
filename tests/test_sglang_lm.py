"""The real SGLang server, where there is one: an exported run's greedy ids are those of the trained model.

`SPEECHLM_SGLANG_PYTHON=/path/to/python pytest -m slow tests/test_sglang_lm.py`
"""

import json
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from speechlm.nn.causal_lm import NewRows
from speechlm.nn.glm4voice_lm import released_vocab, save_released
from speechlm.nn.hf_export import save_hf
from speechlm.tokens.vocab import Vocab
from tests.test_sglang import wait_for
from tests.text_corpus import make_tokenizer
from tests.tiny_lm import tiny_stage

PYTHON = os.environ.get("SPEECHLM_SGLANG_PYTHON")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="SPEECHLM_SGLANG_PYTHON is not set")]
VOCAB = Vocab(num_text=328, num_speech=32, controls=("<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>"))
SHAPE: dict[str, Any] = {"vocab_size": 400, "hidden_size": 64, "head_dim": 16, "max_position_embeddings": 512}


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server of the folder, tokenizer and all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "sglang.launch_server", "--model-path", str(folder), "--dtype", "float32"]
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


def asked(url: str, **request: Any) -> list[int]:
    """Greedy ids for a request."""
    sampling = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
    body = json.dumps({**request, "sampling_params": sampling}).encode()
    call = urllib.request.Request(url + "/generate", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(call, timeout=120))["output_ids"]


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_server_goes_on_as_the_trained_model_does(kind: str, tmp_path: Path):
    lm = tiny_stage(tmp_path, kind, shape=SHAPE, vocab=VOCAB).eval().lm
    save_hf(lm, VOCAB, str(make_tokenizer(tmp_path / "text")), tmp_path / "out", torch.float32)
    ids = torch.tensor([[292, 315, 327, VOCAB.control("<|begin_of_audio|>"), VOCAB.speech_offset, len(VOCAB) - 1]])
    expected = lm.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=None)[0, 6:].tolist()
    with serve(tmp_path / "out") as url:
        assert asked(url, input_ids=ids[0].tolist()) == expected
        assert asked(url, text="the quick<think><|begin_of_audio|><|audio_0|><|audio_31|>") == expected


def test_the_server_goes_on_as_a_trained_model_in_the_released_form_does(tmp_path: Path):
    vocab = released_vocab()
    shape = {**SHAPE, "vocab_size": 168_960}
    lm = tiny_stage(tmp_path, "glm", tied=False, shape=shape, vocab=vocab, new_rows=NewRows(form="keep")).eval().lm
    save_released(lm, vocab, str(make_tokenizer(tmp_path / "text")), tmp_path / "out", torch.float32)
    ids = torch.tensor([[292, 315, 327, vocab.control("<|begin_of_audio|>"), vocab.speech_offset, len(vocab) - 1]])
    expected = lm.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=None)[0, 6:].tolist()
    with serve(tmp_path / "out") as url:
        assert asked(url, input_ids=ids[0].tolist()) == expected
        assert asked(url, text="the quick<think><|begin_of_audio|><|audio_0|><|audio_16383|>") == expected
