"""A trace is left that the browser's viewer can read, and training is as it was."""

import gzip
import json
import logging
from pathlib import Path

import pytest
import torch

from callbacks.trace import Trace
from tests.test_speech_lm import fit
from tests.tiny_lm import random_rows, tiny_stage


def test_a_trace_of_the_steps_asked_for_is_left(tmp_path: Path):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = [random_rows(2, seed=seed) for seed in range(10)]
    plain, traced = tiny_stage(tmp_path), tiny_stage(tmp_path)
    settings = {"limit_val_batches": 0, "accumulate_grad_batches": 2}
    fit(plain, batches, tmp_path / "plain", 5, **settings)
    fit(traced, batches, tmp_path / "run", 5, callbacks=[Trace(at=3, steps=1)], **settings)
    torch.testing.assert_close(dict(traced.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    assert not (tmp_path / "plain" / "trace").exists()
    with gzip.open(tmp_path / "run" / "trace" / "step3.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name == "ProfilerStep#3" for name in names) >= 1  # the fourth step, counted from 0
    assert "aten::mm" in names and sum("AdamW.step" in name for name in names) >= 1
    assert "aten::mm" in (tmp_path / "run" / "trace" / "step3.txt").read_text()


def test_a_trace_without_warm_up_is_refused():
    with pytest.raises(ValueError, match="at >= 2 and steps >= 1, got 1 and 3"):
        Trace(at=1)
