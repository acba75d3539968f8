"""A plan says what a run takes: memory as it was measured, operations as torch counts them, time as arithmetic has it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from speechlm import plan
from speechlm.planning import calibrate as calibration
from speechlm.planning import sound
from speechlm.planning.calibrate import calibrate
from speechlm.planning.language_model import LMRun, cost_of
from speechlm.planning.machines import machine
from speechlm.planning.shapes import KNOWN, shape_of
from speechlm.planning.sound import whisper_cost
from speechlm.planning.stages import lm_run, lm_step, tokens_of
from tests.tiny_lm import CONFIGS, SHAPE

ROOT = Path(__file__).parents[1]
MIDDLE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}


def shape(kind: str, **changes: Any) -> Any:
    return CONFIGS[kind](**{**SHAPE, **MIDDLE, "tie_word_embeddings": True, **changes})


WIDE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 64,
        "vocab_size": 32768}  # fmt: skip
DEEP = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 16, "num_attention_heads": 6,
        "num_key_value_heads": 6, "vocab_size": 4096}  # fmt: skip
HALF_KEPT = {"loss_chunk": 256, "activation_checkpointing": "selective"}
EVERY_SECOND = {"loss_chunk": 2048, "activation_checkpointing": 2}


def measured(given: dict[str, Any]) -> float:
    """Bytes of a real run, with an allocator that gives back what is free."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.measured_lm", json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout.splitlines()[-1])["bytes"])


@pytest.mark.parametrize(
    ("changes", "rows", "row_len", "stage", "trainer"),
    [
        pytest.param({}, 4, 512, {"loss_chunk": 128}, {}, id="activations"),
        pytest.param(
            {}, 1, 512, {"loss_chunk": 512, "activation_checkpointing": True, "ema_decay": 0.9}, {}, id="weights"
        ),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (WIDE, 1, 1024, {"loss_chunk": 256}, {}),
                (WIDE, 2, 512, {"loss_chunk": 256, "activation_checkpointing": True}, {}),
                (WIDE, 1, 256, {"loss_chunk": 64, "ema_decay": 0.9}, {"accumulate_grad_batches": 2}),
                (WIDE, 2, 512, {"loss_chunk": 256}, {"precision": "bf16-mixed"}),
                (DEEP, 4, 512, {"loss_chunk": 256}, {}),
                (DEEP, 4, 512, HALF_KEPT, {}),
                (DEEP, 2, 1024, EVERY_SECOND, {}),
                ({}, 4, 512, {"loss_chunk": 512}, {"accumulate_grad_batches": 2}),
            )
        ),
    ],
)
def test_the_memory_planned_is_the_memory_measured(
    changes: dict[str, Any], rows: int, row_len: int, stage: dict[str, Any], trainer: dict[str, Any]
):
    run = LMRun(
        shape("qwen2", **changes),
        (MIDDLE | changes)["vocab_size"],
        rows,
        row_len,
        mixed="precision" in trainer,
        loss_chunk=stage["loss_chunk"],
        recompute=stage.get("activation_checkpointing", False),
        ema="ema_decay" in stage,
        accumulated=trainer.get("accumulate_grad_batches", 1),
    )
    parts = cost_of(run).memory
    form = {**MIDDLE, "kind": "qwen2", **changes}
    found = measured({"shape": form, "rows": rows, "row_len": row_len, "stage": stage, "trainer": trainer})
    print({name: round(size / 2**20, 1) for name, size in parts.items()}, sum(parts.values()) / 2**20, found / 2**20)
    assert sum(parts.values()) == pytest.approx(found, rel=0.1)


def test_a_model_of_the_published_shape_has_the_published_number_of_weights():
    """1.54 B and 9.40 B by their model cards, before the rows for speech."""
    small = cost_of(LMRun(KNOWN["Qwen/Qwen2.5-1.5B"], 151_936, 1, 128))
    assert small.parameters == 1_543_714_304
    large = cost_of(LMRun(KNOWN["zai-org/glm-4-9b-hf"], 151_552, 1, 128, shards=64))
    assert large.parameters == pytest.approx(9.40e9, rel=0.001)
    assert large.memory["weights"] == 4 * large.parameters / 64


def test_each_way_to_recompute_keeps_less_and_computes_more():
    costs = {
        form: cost_of(LMRun(shape("llama"), 8192, 2, 512, recompute=form, loss_chunk=1024))
        for form in (False, "products", "selective")
    }
    kept = [cost.memory["activations"] for cost in costs.values()]
    assert kept == sorted(kept, reverse=True) and kept[-1] < 0.5 * kept[0]
    assert [round(cost.executed, 2) for cost in costs.values()][:2] == [1.0, 1.0]
    assert (
        1.05
        < costs["selective"].executed
        < cost_of(LMRun(shape("llama"), 8192, 2, 512, recompute=True)).executed
        < 1.34
    )


def test_logits_of_fewer_positions_take_less_and_are_computed_twice():
    all_at_once, half, quarter = (cost_of(LMRun(shape("llama"), 8192, 2, 512, loss_chunk=n)) for n in (1024, 512, 256))
    useful = all_at_once.useful
    assert all_at_once.executed == 1 and half.executed == quarter.executed
    assert half.executed == pytest.approx(1 + useful.per_target / 3 / (useful.per_token + useful.per_target))
    saved = [sum(one.memory.values()) - sum(two.memory.values()) for one, two in ((all_at_once, half), (half, quarter))]
    assert saved == pytest.approx([512 * 8192 * 2, 256 * 8192 * 2])


@pytest.mark.parametrize(("shards", "head"), [(1, 4), (64, 2)])
def test_head_and_loss_of_four_rows_take_half_a_gib_beside_the_heads_gradient(shards: int, head: int):
    shape = KNOWN["Qwen/Qwen2.5-1.5B"]
    run = LMRun(shape, 168_960, 4, 8192, shards=shards, recompute="selective", loss_chunk=512)
    memory, width = cost_of(run).memory, shape.hidden_size
    beside = memory["loss"] - head * run.vocab * width - 2 * 2 * run.positions * width
    assert 0.2 < beside / 2**30 < 0.5


def test_weights_that_travel_slower_than_they_are_computed_with_are_what_is_waited_for():
    job = machine("64xH800")
    run = LMRun(KNOWN["Qwen/Qwen2.5-1.5B"], 168_960, 1, 8192, shards=64)
    cost = cost_of(run)
    useful = 1e10
    seconds, bound = lm_step(run, cost, useful, job, 0.4)
    assert bound == "network" and seconds == pytest.approx(cost.parameters * 8 * 63 / 64 / 50e9)
    groups = LMRun(**{**run.__dict__, "shards": 8})
    inside = cost.parameters * (8 * 7 / 8 / 200e9 + 8 / 8 * 7 / 8 / 50e9)
    assert lm_step(groups, cost, 1.0, job, 0.4) == (pytest.approx(inside), "network")
    computing = 8192 * useful * cost.executed / (989e12 * 0.4)
    assert lm_step(groups, cost, useful, job, 0.4) == (pytest.approx(computing), "operations")


def test_a_slice_is_scaled_to_the_whole_depth(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "slice_seconds", lambda run, layers, *_: (0.5 + 0.1 * layers, 7.0))
    found = calibrate(LMRun(shape("qwen2"), 8192, 1, 64), torch.device("cpu"), slices=(2, 4))
    assert found.seconds(40) == pytest.approx(4.5) and found.layer_sec == pytest.approx(0.1)


def test_the_command_plans_a_system_and_calibrates_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "plan.json"
    stages = [
        "speech_lm/tiny/qwen2.5_1.5b",
        "text_to_token/tiny/qwen2.5_1.5b",
        "synthesize/fineweb_edu",
        "vocoder/tiny/paper",
    ]
    configs = [part for name in stages for part in ("--config", f"configs/{name}.yaml")]
    plan.main([*configs, "--gpus", "8xH200", "--price", "3", "--calibrate", "--json", str(out)])
    values = json.loads(out.read_text())
    lm, speaker, synthesis, vocoder = values["stages"]
    assert lm["units"] == 5000 and speaker["unit"] == "tokens" and vocoder["unit"] == "seconds"
    assert (
        synthesis["gpu_hours"] == pytest.approx(3.7e11 / 25_000 / 3600)
        and synthesis["cost"] == 3 * synthesis["gpu_hours"]
    )
    assert values["calibrated"][0]["layer_sec"] > 0 and values["calibrated"][0]["rest_sec"] >= 0
    assert values["calibrated"][2] is None
    assert {"weights", "optimizer", "average"} <= lm["memory_gib"].keys()
    shown = capsys.readouterr().out
    assert "8 x H200" in shown and "vocoder" in shown.lower() and "this machine" in shown


@pytest.mark.parametrize(
    ("batch_rows", "settings", "trainer", "row_len", "units"),
    [
        (8, {"total_tokens": 3.0e8}, {"max_steps": 9155, "devices": 1}, 4096, 3e8),
        (1, {"total_tokens": 6.3e8, "step_rows": 64}, {"max_steps": 2403, "devices": 8}, 4096, 6.3e8),
        (8, {}, {"max_steps": 10_000, "accumulate_grad_batches": 4}, 8192, 10_000 * 2 * 8 * 4 * 8192),
        (8, {}, {"max_steps": -1}, 8192, 0),
    ],
)
def test_ids_of_a_row_and_of_a_run_are_what_the_config_comes_to(
    batch_rows: int, settings: dict[str, Any], trainer: dict[str, Any], row_len: int, units: float
):
    data = {"train": [{"path": "nowhere"}], "batch_rows": batch_rows, **settings}
    model = {"lm": str(ROOT / "assets/tiny-lm/qwen2"), "vocab": "nowhere.json"}
    config = {"model": {"init_args": model}, "data": {"init_args": data}, "trainer": trainer}
    two = machine("2xH100")
    run, notes = lm_run(config, two)
    assert run.row_len == row_len and any("no rows are there yet" in note for note in notes)
    assert tokens_of(config, run, two) == units


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "64xT4"], "GPUs are given as 64xH800"),
        (["--gpus", "H200", "--config", "configs/pack/paper.yaml"], "model"),
    ],
)
def test_what_can_not_be_planned_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        plan.main(["--config", "configs/speech_lm/tiny/lora.yaml", *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_whispers_attention_is_counted_with_its_products():
    cost = whisper_cost({"whisper": str(ROOT / "assets/whisper-nano-en")}, 30.0, True)
    shape = shape_of(str(ROOT / "assets/whisper-nano-en"))[0]
    seen, text = shape.max_source_positions, 120
    pairs = shape.encoder_layers * seen**2 + shape.decoder_layers * (text**2 + text * seen)
    assert cost.traced.attention_flops == pytest.approx(3.5 * 4 * shape.d_model * pairs)
    assert cost.traced.attention_flops < cost.traced.flops == cost.useful


@pytest.mark.parametrize("again", [False, True])
def test_whispers_layers_are_traced_once_and_counted_all(again: bool):
    shape = shape_of(str(ROOT / "assets/whisper-nano-en"))[0]
    assert shape.encoder_layers != shape.decoder_layers
    assert sound._whisper(shape, 2, True, again) == sound._traced_whisper(shape, 2, True, again)


def test_known_models_are_planned_without_a_hub(monkeypatch: pytest.MonkeyPatch):
    read = AutoConfig.from_pretrained

    def asked(name: str) -> Any:
        assert Path(name).is_dir(), f"the hub was asked for {name}"
        return read(name)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("speechlm.planning.shapes.AutoConfig.from_pretrained", asked)
    for config in sorted((ROOT / "configs").glob("*/*.yaml")):
        for name in re.findall(r"^ +(?:lm|whisper): ([\w./-]+/[\w./-]+)", config.read_text(encoding="utf-8"), re.M):
            if not name.startswith(("assets/", "runs/tour", "runs/closed_world", "models/spanish-asr")):
                assert shape_of(name)[0].vocab_size > 49_000, (config, name)


def test_a_model_that_nobody_knows_is_named():
    with pytest.raises(ValueError, match=r"no config.json of nobody/nothing"):
        shape_of("nobody/nothing")


def test_the_table_of_the_readme_is_what_its_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"python -m speechlm\.plan (--gpus.*?)\n```\n\n(\|.*?)\n\n", text, re.S)
    assert found is not None
    plan.main(shlex.split(found[1].replace("\\\n", " ")))
    assert capsys.readouterr().out.strip() == found[2]
