"""Speed of training on rows: what is padding, what is waiting, and what the machine could have done."""

import logging
from pathlib import Path

import pytest
import torch

from callbacks.jsonl import JsonlLogger, read_metrics
from callbacks.throughput import Throughput, _peak_tflops
from tests.test_speech_lm import fit
from tests.tiny_lm import random_rows, tiny_stage


def test_tokens_padding_and_useful_operations_are_those_of_the_rows(tmp_path: Path):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = [random_rows(2, seed=seed) for seed in range(4)]
    stage = tiny_stage(tmp_path)
    logger = JsonlLogger(str(tmp_path))
    speed = Throughput(every=2, peak_tflops=0.5)
    fit(stage, batches, tmp_path, 2, callbacks=[speed], logger=logger, accumulate_grad_batches=2, limit_val_batches=0)
    seen = {name: list(values.values())[-1] for name, values in read_metrics(tmp_path).items()}
    tokens, size = sum(b.num_tokens for b in batches), sum(b.ids.numel() for b in batches)
    assert seen["perf/padding_share"] == pytest.approx(1 - tokens / size)
    seconds = 2 * seen["perf/step_sec"]
    assert seen["perf/tokens_per_sec_per_gpu"] * seconds == pytest.approx(tokens, rel=1e-3)
    flops = sum(float(stage.useful_flops(batch)) for batch in batches)
    assert seen["perf/mfu"] * seconds * 0.5e12 == pytest.approx(flops, rel=1e-3)
    assert "perf/hours_per_hour" not in seen and 0 <= seen["perf/data_wait"] < 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H800", 989.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("Something else", None),
    ],
)
def test_what_a_device_could_do_is_found_by_its_name(name: str, expected: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert _peak_tflops(torch.device("cuda", 0)) == expected
    assert _peak_tflops(torch.device("cpu")) is None
