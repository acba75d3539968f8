"""Tests stay offline, leave the machine's other cores to whoever needs them, and draw the same numbers every time."""

import itertools
import os
import secrets
from pathlib import Path

if "OMP_NUM_THREADS" not in os.environ or "OMP_NUM_THREADS_OF_TESTS" in os.environ:  # workers inherit what is set here
    os.environ["OMP_NUM_THREADS_OF_TESTS"] = "yes"
    os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

# A suite that gates changes is the same for everybody; `--hypothesis-profile explore` looks for new examples.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("repeatable")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


#: Files that take half a minute and more, mostly of waiting: begun first, they are not what everybody waits for at the end.
LONG = (
    "test_slurm.py",
    "test_kills.py",
    "test_wandb_away.py",
    "test_speech_lm.py",
    "test_plan.py",
    "test_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file the order stays."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def repeatable_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies that nobody gave a seed get 0, 1, 2, … in every test: random weights may say anything, but always the same."""
    count = itertools.count()
    monkeypatch.setattr(secrets, "randbelow", lambda bound: next(count) % bound)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to talk to, of random weights; not to be written to."""
    from speechlm.serving.random_parts import write_random_bundle
    from tests.tiny_chat import WHISPER

    folder = tmp_path_factory.mktemp("chat") / "bundle"
    write_random_bundle(folder, WHISPER)
    return folder
