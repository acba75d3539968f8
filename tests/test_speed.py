"""What is done for speed changes nothing that is computed, and is compiled once."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from speechlm.batch import RowBatch
from speechlm.nn import loss_kernels
from speechlm.nn.causal_lm import blocks
from speechlm.nn.loss_kernels import require_equal
from speechlm.nn.losses import token_losses
from speechlm.nn.recompute import recompute
from speechlm.nn.speed import Speed, compile_layers
from speechlm.stages.optim import AdamWSettings
from speechlm.stages.speech_lm import SpeechLM
from tests.tiny_lm import random_rows, tiny_stage

CPU = torch.device("cpu")
WIDE = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8}


def gradients(stage: SpeechLM, batch: RowBatch) -> dict[str, Tensor]:
    stage.zero_grad()
    stage.score(batch).losses.mean().backward()
    return {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", [True, 2, "selective", "products"])
@pytest.mark.parametrize("kind", ["qwen2", "glm"])
def test_what_is_computed_again_changes_no_gradient(form: Any, kind: str, tmp_path: Path):
    batch = random_rows(2)
    kept = gradients(tiny_stage(tmp_path, kind, tied=False), batch)
    again = gradients(tiny_stage(tmp_path, kind, tied=False, activation_checkpointing=form), batch)
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_each_form_of_recomputation_costs_the_products_it_should(tmp_path: Path):
    """Of a layer's operations forward: none again, every second product again, everything again."""
    batch, counted = random_rows(2), {}
    for form in (False, "products", "selective", True):
        stage = tiny_stage(tmp_path, tied=False, activation_checkpointing=form, attention="sdpa")
        with FlopCounterMode(display=False) as counter:
            stage.score(batch).losses.sum().backward()
        own = counter.get_flop_counts()["Global"]
        counted[form] = sum(count for op, count in own.items() if str(op) in ("aten.mm", "aten.addmm"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stage.model.states(batch.ids, batch.doc_ids, batch.position_ids)
    forward = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    again = {form: (count - counted[False]) / forward for form, count in counted.items()}
    assert again[False] == again["products"] == 0
    assert again[True] == pytest.approx(
        7 / 9
    )  # the last one's result is asked for by nobody, and two of nine are its own
    assert 0.2 < again["selective"] < 0.6


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'selective' or 'products', got 'some'"):
        recompute([], "some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give 1 or more"):
        recompute([], -2)


@pytest.mark.parametrize(("attention", "form"), [("sdpa", False), ("sdpa", "selective"), ("varlen", False)])
def test_layers_are_compiled_once_for_all_batches_and_give_the_same(attention: str, form: Any, tmp_path: Path):
    torch._dynamo.reset()
    settings = {"tied": False, "attention": attention, "activation_checkpointing": form}
    plain, compiled = (tiny_stage(tmp_path, **settings) for _ in range(2))
    compile_layers(blocks(compiled.lm), backend="aot_eager")
    batches = [random_rows(2, seed=seed) for seed in range(4)]
    for number, batch in enumerate(batches):
        before = counters["stats"]["unique_graphs"]
        other = gradients(compiled, batch)
        assert (counters["stats"]["unique_graphs"] > before) == (number == 0)
        for name, value in gradients(plain, batch).items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_flex_attention_is_compiled_once_for_all_documents(tmp_path: Path):
    torch._dynamo.reset()
    stage = tiny_stage(tmp_path, attention="flex", tied=False)
    compile_layers(blocks(stage.lm), backend="eager")
    counters.clear()
    for seed in range(4):
        stage.score(random_rows(2, length=300, seed=seed))
        if seed == 0:
            graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0 and counters["stats"]["unique_graphs"] == graphs


def test_a_stage_compiles_its_layers_when_it_is_set_up(tmp_path: Path):
    import lightning as L

    stage = tiny_stage(tmp_path, speed=Speed(compile=True))
    trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
    stage.trainer = trainer
    stage.configure_model()
    assert all(layer._compiled_call_impl is not None for layer in blocks(stage.lm))


# -- float8 ----------------------------------------------------------------------------------------------------------------


def test_float8_products_are_near_and_weights_keep_their_names(tmp_path: Path):
    pytest.importorskip("torchao")
    batch = random_rows(2)
    plain = tiny_stage(tmp_path, tied=False, shape=WIDE)
    coarse = tiny_stage(tmp_path, tied=False, shape=WIDE, speed=Speed(float8="emulated"))
    assert plain.state_dict().keys() == coarse.state_dict().keys()
    expected, found = gradients(plain, batch), gradients(coarse, batch)
    differ = [float((found[name] - value).norm() / value.norm()) for name, value in expected.items()]
    assert 0 < sorted(differ)[len(differ) // 2] < 0.2 and max(differ) < 0.5, differ
    torch.testing.assert_close(coarse.score(batch).losses, plain.score(batch).losses, rtol=0.1, atol=0.1)


def test_float8_without_compiling_or_without_a_fitting_matrix_is_refused(tmp_path: Path):
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match=r"set speed.compile: true"):
        Speed(float8="rowwise")
    narrow = {"hidden_size": 24, "intermediate_size": 40, "head_dim": 6}
    with pytest.raises(ValueError, match="multiples of 16"):
        tiny_stage(tmp_path, shape=narrow, speed=Speed(float8="emulated"))


# -- losses ----------------------------------------------------------------------------------------------------------------


def test_a_kernel_with_a_wrong_gradient_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def wrong(states: Tensor, weight: Tensor, labels: Tensor, chunk: int, z_loss: float) -> Tensor:
        """Right losses; gradients as if every position weighed the same."""
        exact = token_losses(states, weight, labels, chunk, z_loss)
        return exact.mean() + (exact - exact.mean()).detach()

    with pytest.raises(ValueError, match=r"broken is wrong on cpu in torch.float32: the gradient of states are off by"):
        require_equal(wrong, "broken", CPU, torch.float32)
    require_equal(token_losses, "ours", CPU, torch.float32)
    require_equal(token_losses, "ours", CPU, torch.bfloat16)
    loss_kernels.checked_kernel.cache_clear()
    monkeypatch.setattr(loss_kernels, "find_kernel", lambda name: wrong)
    stage = tiny_stage(tmp_path)
    stage.model.loss = "liger"
    with pytest.raises(ValueError, match="liger is wrong"):
        stage.score(random_rows(2))
    loss_kernels.checked_kernel.cache_clear()


LIGER = """
import torch
from speechlm.nn.loss_kernels import checked_kernel
for dtype in (torch.float32, torch.bfloat16):
    checked_kernel("liger", torch.device("cpu"), dtype)
print("equal")
"""


def test_the_kernel_of_liger_gives_our_gradients():
    """In triton's interpreter, which needs no GPU."""
    pytest.importorskip("liger_kernel")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", LIGER], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("equal\n"), done.stderr


def test_a_kernel_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'chunked' or 'liger', got 'cut'"):
        Speed(loss="cut")  # type: ignore[arg-type]


# -- optimizer, transfer ---------------------------------------------------------------------------------------------------


def test_one_kernel_for_all_weights_makes_the_steps_of_many(tmp_path: Path):
    states = []
    for fused in (False, True):
        stage = tiny_stage(tmp_path)
        optimizer, _ = AdamWSettings(lr=1e-2, decay="constant", fused=fused).build(stage, 0)
        assert all(bool(group["fused"]) == fused for group in optimizer.param_groups)
        for seed in range(5):
            gradients(stage, random_rows(2, seed=seed))
            optimizer.step()
        states.append(stage.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-6)


def test_what_is_looked_up_before_the_transfer_is_what_the_mask_says(tmp_path: Path):
    batch = random_rows(4, seed=3)
    batch.loss_mask[1, 0] = True  # nothing is before it
    stage = tiny_stage(tmp_path)
    looked, found = stage.score(batch.looked_up()), stage.score(batch)
    for one, other in zip(looked, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    batch.loss_mask[1, 0] = False
    assert len(looked.losses) == int(batch.loss_mask.sum())
