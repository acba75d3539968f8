"""Steps of a slice of the real model on this machine's device, and what they say of the whole one."""

import copy
import math
import statistics
import time
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from speechlm.nn.causal_lm import blocks
from speechlm.nn.document_attention import Attention
from speechlm.nn.packed_lm import PackedLM
from speechlm.nn.recompute import recompute
from speechlm.nn.speed import Speed, compile_layers
from speechlm.planning.language_model import LMRun


class Calibrated(NamedTuple):
    """Of a micro-batch with forward, backward and optimizer."""

    layer_sec: float
    rest_sec: float
    peak_bytes: float  # on a GPU, of the larger slice; else 0

    def seconds(self, layers: int) -> float:
        """Of a model of so many layers."""
        return self.rest_sec + layers * self.layer_sec


def calibrate(
    run: LMRun, device: torch.device, steps: int = 20, document: int | None = None, attention: Attention = "auto",
    speed: Speed = Speed(), slices: tuple[int, int] = (1, 3),  # noqa: B008 - frozen
) -> Calibrated:  # fmt: skip
    """Time two slices of a model at its full width, vocabulary and rows, each with its own steps.

    Args:
        run: what is to be timed.
        device: where.
        steps: timed, of each slice; a fifth as many before them are not.
        document: ids of a document; None is a whole row.
        attention: see `PackedLM`.
        speed: see the stage.
        slices: layers of the two.
    """
    small, large = (slice_seconds(run, n, device, steps, document, attention, speed) for n in slices)
    layer = (large[0] - small[0]) / (slices[1] - slices[0])
    rest = small[0] - slices[0] * layer
    if layer < 0 or rest < 0:  # a machine that others use: the two slices were timed at different speeds
        layer, rest = large[0] / slices[1], 0.0
    return Calibrated(layer, rest, large[1])


def slice_seconds(
    run: LMRun, layers: int, device: torch.device, steps: int, document: int | None, attention: Attention, speed: Speed
) -> tuple[float, float]:
    """Median seconds of a step of a model of so many layers, and the most bytes that it held on a GPU."""
    shape: Any = copy.deepcopy(run.shape)
    shape.vocab_size, shape.num_hidden_layers = run.vocab, layers
    shape.layer_types = ["full_attention"] * layers
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).train()
    recompute(blocks(lm), run.recompute)
    if speed.compile:
        compile_layers(blocks(lm))
    model = PackedLM(lm, attention, run.loss_chunk, loss=speed.loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=run.fused)
    batch = _rows(run, document, device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    taken = []
    for _ in range(steps + math.ceil(steps / 5)):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=run.mixed):
            loss = model(*batch).losses.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[-steps:]), float(torch.cuda.max_memory_allocated(device)) if cuda else 0.0


def _rows(run: LMRun, document: int | None, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Random ids in documents of one length: ids, loss mask, document and position of each."""
    length = min(document or run.row_len, run.row_len)
    ids = torch.randint(run.vocab, (run.rows, run.row_len), generator=torch.Generator().manual_seed(0))
    places = torch.arange(run.row_len).expand(run.rows, -1)
    docs, positions = (places // length).int(), places % length
    return tuple(tensor.to(device) for tensor in (ids, positions > 0, docs, positions))
