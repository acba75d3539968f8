"""Engines as a config names them: settings now, the engine itself once the model's folder and its target are known."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from speechlm.engines.base import Engine, Target
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.engines.sglang import SGLangEngine
from speechlm.engines.sglang_local import SGLangLocalEngine, start


class EngineSettings(Protocol):
    """Knows how to make an engine."""

    def open(self, model: str, target: Target, device: str) -> Engine:
        """The engine for a model's folder, on a device of this process where it runs in it."""
        ...


@dataclass(frozen=True)
class HuggingFace:
    """Continuous batching in this process.

    Args:
        slots: sequences at once.
        max_length: positions of a sequence.
        dtype: of weights and arithmetic.
    """

    slots: int = 64
    max_length: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"

    def open(self, model: str, target: Target, device: str) -> Engine:
        """See `EngineSettings.open`."""
        dtype = getattr(torch, self.dtype)
        lm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        return HuggingFaceEngine(lm.to(device).eval(), target, self.slots, self.max_length)


@dataclass(frozen=True)
class SGLang:
    """SGLang servers that were started with the same model.

    Args:
        urls: one address per replica.
        max_length: positions the servers were started with.
        api_key_env: environment variable with the servers' key.
        group: prompts in a request.
        in_flight: requests one replica works on at a time.
        timeout_sec: for one request.
        patience_sec: how long all replicas may be away together.
    """

    urls: list[str] = field(default_factory=lambda: ["http://127.0.0.1:30000"])
    max_length: int = 1024
    api_key_env: str = "SGLANG_API_KEY"
    group: int = 16
    in_flight: int = 4
    timeout_sec: float = 600.0
    patience_sec: float = 300.0

    def open(self, model: str, target: Target, device: str) -> Engine:
        """See `EngineSettings.open`; of the folder only the configuration is read."""
        vocab_size = AutoConfig.from_pretrained(Path(model), trust_remote_code=False).vocab_size
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return SGLangEngine(settings.pop("urls"), target, vocab_size, **settings)


@dataclass(frozen=True)
class SGLangLocal:
    """SGLang in this process, in an environment that has it.

    Args:
        max_length: positions of a sequence.
        dtype: of weights and arithmetic.
        group: prompts that are handed over together.
        in_flight: groups at work at once.
        settings: of `sglang.Engine`, by its names: `mem_fraction_static`, `attention_backend` …
    """

    max_length: int = 1024
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    group: int = 16
    in_flight: int = 16
    settings: dict[str, Any] = field(default_factory=lambda: {"enable_deterministic_inference": True})

    def open(self, model: str, target: Target, device: str) -> Engine:
        """See `EngineSettings.open`."""
        vocab_size = AutoConfig.from_pretrained(Path(model), trust_remote_code=False).vocab_size
        engine = start(model, self.max_length, device, self.dtype, self.settings)
        return SGLangLocalEngine(engine, target, vocab_size, self.max_length, self.group, self.in_flight)


def model_hash(folder: str | Path) -> str:
    """16 hex digits over a model's configuration and weights.

    Raises:
        FileNotFoundError: there are no safetensors in the folder.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no weights in safetensors; `python -m speechlm.export` writes such a folder"
        )
    whole = hashlib.sha256()
    for file in [Path(folder) / "config.json", *files]:
        with open(file, "rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()[:16]
