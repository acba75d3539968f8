"""Tests stay offline, and leave the machine's other cores to whoever needs them."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to talk to, of random weights; not to be written to."""
    from speechlm.serving.random_parts import write_random_bundle
    from tests.tiny_chat import WHISPER

    folder = tmp_path_factory.mktemp("chat") / "bundle"
    write_random_bundle(folder, WHISPER)
    return folder
