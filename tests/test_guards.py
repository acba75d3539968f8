"""Guards of updates, one process: what is left out, what goes on, and what is never poisoned."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.finite_guard import FiniteGuard
from callbacks.recompute_check import RecomputeCheck, layers
from callbacks.replica_check import hash_of
from callbacks.rewind import Rewind, Snapshot
from callbacks.spike_guard import SpikeGuard
from callbacks.stragglers import StragglerReport
from callbacks.update_guard import StepSize
from speechlm.nn.ema_vq import EmaVQ
from speechlm.tokens.clock import Clock
from speechlm.updates import Updates, updates_of
from tests.dummies import DummyData, DummyStage
from tests.faults.injections import BadGradient, BadLoss, WrongLayer
from tests.tiny_lm import Rows, random_rows, tiny_stage


class Watch(L.Callback):
    """Keeps the weights, moments and left-out steps behind every step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.moments: list[torch.Tensor] = []
        self.left_out: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()]))
        states = trainer.optimizers[0].state.values()
        self.moments.append(
            torch.cat([torch.zeros(1), *(s[k].flatten() for s in states for k in ("exp_avg", "exp_avg_sq"))])
        )
        left_out = updates_of(pl_module).left_out_at(trainer.global_step - 1)
        if left_out and trainer.global_step - 1 not in self.left_out:
            self.left_out.append(trainer.global_step - 1)


def train(tmp_path: Path, *callbacks: L.Callback, steps: int = 8, stage: Any = None, data: Any = None, **settings: Any):
    L.seed_everything(0)
    stage = stage or DummyStage(Clock(), dropout=0.0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(stage, datamodule=data or DummyData(Clock()))
    return stage, trainer


# --- not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fault", [BadGradient, BadLoss])
@pytest.mark.parametrize("step", [0, 3])
def test_an_update_that_is_not_finite_is_left_out_and_the_next_is_made(
    tmp_path: Path, fault: Any, value: float, step: int
):
    watch = Watch()
    train(tmp_path, fault([step], value=value), FiniteGuard(), watch)
    assert watch.left_out == [step]
    assert all(torch.isfinite(w).all() for w in watch.weights + watch.moments)
    changed = [bool((b != a).any()) for a, b in zip(watch.weights, watch.weights[1:], strict=False)]
    assert changed == [i != step for i in range(1, 8)]
    if step:
        assert torch.equal(watch.moments[step], watch.moments[step - 1])


def test_without_the_guard_one_nan_is_the_end_of_the_weights(tmp_path: Path):
    watch = Watch()
    train(tmp_path, BadGradient([3]), watch)
    assert torch.isnan(watch.weights[-1]).all()


def test_of_accumulated_micro_batches_one_that_is_not_finite_spoils_its_step_alone(tmp_path: Path):
    class Once(BadLoss):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 5:
                batch.audio.mul_(float("nan"))

    watch, guard = Watch(), FiniteGuard()
    train(tmp_path, Once([]), guard, watch, steps=4, accumulate_grad_batches=2)
    assert guard.left_out == 1 and watch.left_out == [2]  # of two micro-batches each
    assert torch.isfinite(watch.weights[-1]).all()


def test_the_average_and_the_counts_of_a_language_model_are_not_spoilt(tmp_path: Path):
    class Poison(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.model.z_loss = float("nan") if batch_idx == 2 else 0.0

    stage = tiny_stage(tmp_path, ema_decay=0.5)
    kept: list[dict[str, torch.Tensor]] = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            kept.append({n: b.clone() for n, b in pl_module.ema.named_buffers()})

    rows = Rows([random_rows(2, seed=i) for i in range(5)])
    train(tmp_path, Poison(), FiniteGuard(), Keep(), steps=5, stage=stage, data=rows, log_every_n_steps=5)
    assert stage.skipped == 1 and stage._skipped_in_a_row == 0
    assert all(torch.equal(kept[1][n], kept[2][n]) and not torch.equal(kept[2][n], kept[3][n]) for n in kept[0])


def test_a_codebook_neither_learns_from_what_is_not_finite_nor_from_a_step_left_out():
    vq = EmaVQ(2, 4, init="random", restart_every=0).train()
    start = vq.codebook.clone()
    bad = torch.randn(1, 6, 2)
    bad[0, 2] = float("nan")
    vq(bad, torch.ones(1, 6, dtype=torch.bool))
    vq.forget()
    vq.update()
    assert vq.codebook.isfinite().all()
    vq(bad, torch.ones(1, 6, dtype=torch.bool))
    vq.update()
    assert vq.codebook.isfinite().all() and not torch.equal(vq.codebook, start)
    assert float(vq.ema_count.sum()) == pytest.approx(4 * 0.99**2 + 5 * 0.01, rel=1e-3)  # five frames, not six


# --- spikes


def feed(guard: SpikeGuard, sizes: list[StepSize]) -> list[bool]:
    left_out = []
    for size in sizes:
        objection = guard.objection(size)
        left_out.append(bool(objection))
        if not objection:
            guard.accepted(size)
    return left_out


def usual(count: int, seed: int = 0) -> list[StepSize]:
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return [StepSize(3 + 0.1 * float(a), 1 + 0.1 * float(b), True) for a, b in noise]


@pytest.mark.parametrize("spike", [StepSize(4.5, 1.0, True), StepSize(3.0, 2.5, True)])
def test_a_spike_is_left_out_and_what_follows_is_not(spike: StepSize):
    before, after = usual(100), usual(200, seed=1)
    assert feed(SpikeGuard(), [*before, spike, *after]) == [False] * 100 + [True] + [False] * 200


def test_one_nan_does_not_make_spikes_of_the_healthy_steps_behind_it():
    guard = SpikeGuard()
    nan = StepSize(float("nan"), float("nan"), False)
    assert not any(feed(guard, [*usual(100), nan, *usual(200, seed=1)]))
    assert feed(guard, [StepSize(9.0, 1.0, True)]) == [True]  # and a spike is still one


def test_nothing_is_a_spike_before_enough_was_seen_and_a_falling_loss_never_is():
    assert feed(SpikeGuard(warmup=10), [StepSize(100.0 / (i + 1), 1.0, True) for i in range(200)]).count(True) == 0
    assert not any(feed(SpikeGuard(), [StepSize(1.0, 1.0, True)] * 63 + [StepSize(50.0, 1.0, True)]))


def test_a_resumed_guard_knows_what_is_usual():
    guard, again = SpikeGuard(), SpikeGuard()
    feed(guard, usual(100))
    again.load_state_dict(guard.state_dict())
    assert feed(again, [StepSize(9.0, 1.0, True)]) == [True]


def test_a_spike_in_training_is_left_out(tmp_path: Path):
    watch = Watch()
    train(tmp_path, BadGradient([20], value=1e4), SpikeGuard(warmup=8, window=16), watch, steps=24)
    assert watch.left_out == [20]


@pytest.mark.parametrize("wrong", [{"sigmas": 0}, {"warmup": 1}, {"window": 10, "warmup": 20}])
def test_a_rule_that_can_not_be_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="must hold"):
        SpikeGuard(**wrong)


# --- rewinding


def test_repeated_ones_rewind_to_the_last_good_state_and_the_data_goes_on(tmp_path: Path):
    watch, rewind = Watch(), Rewind(after=3, every=2, margin=1)
    train(tmp_path, BadGradient([7, 8, 9]), FiniteGuard(), rewind, watch, steps=14)
    assert watch.left_out == [7, 8, 9] and rewind.rewound_at == [10]
    good = 6  # the newest snapshot with a step between it and the first bad one
    assert torch.equal(watch.weights[9], watch.weights[good - 1])
    assert torch.equal(watch.moments[9], watch.moments[good - 1])
    assert not torch.equal(watch.weights[10], watch.weights[9])  # step 10's own data is trained on


def test_what_is_trained_behind_a_rewind_is_a_function_of_the_faults_alone(tmp_path: Path):
    ends = []
    for name in ("a", "b"):
        stage, _ = train(
            tmp_path / name, BadGradient([5, 6]), FiniteGuard(), Rewind(after=2, every=2, margin=0), steps=12
        )
        ends.append(torch.cat([p.detach().flatten() for p in stage.parameters()]))
    assert torch.equal(*ends)


def test_rewinding_that_does_not_help_ends_the_run_with_the_reason(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"3 rewinds \(at steps \[4, 6, 8\]\) did not help.*not finite"):
        train(tmp_path, BadGradient(list(range(2, 99))), FiniteGuard(), Rewind(after=2, every=1), steps=50)


def test_rewinds_long_ago_are_forgiven(tmp_path: Path):
    bad = [s for start in range(2, 60, 8) for s in (start, start + 1)]
    rewind = Rewind(after=2, every=1, margin=0, max_rewinds=2, window=12)
    train(tmp_path, BadGradient(bad), FiniteGuard(), rewind, steps=62)
    assert len(rewind.rewound_at) == 8


def test_a_stage_that_counts_by_itself_is_told(tmp_path: Path):
    class Poison(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.model.z_loss = float("nan") if batch_idx in (2, 3, 4, 5) else 0.0

    stage = tiny_stage(tmp_path, max_skipped=3)  # would stop at the third
    rows = Rows([random_rows(2, seed=i) for i in range(8)])
    rewind = Rewind(after=2, every=1, margin=0)
    train(tmp_path, Poison(), FiniteGuard(), rewind, steps=8, stage=stage, data=rows)
    assert rewind.rewound_at == [4, 6] and stage.skipped == 4


def test_a_buffer_that_grew_is_put_back_with_its_size():
    vq = EmaVQ(2, 4, init_updates=4, init_frames_per_code=2).train()
    kept = Snapshot().take(0, vq, [])
    vq(torch.randn(1, 6, 2), torch.ones(1, 6, dtype=torch.bool))
    vq.update()
    assert len(vq.pool) == 2
    kept.put_back(vq, [])
    assert len(vq.pool) == 0 and int(vq.num_updates) == 0


def test_the_ledger_counts_rows_of_steps():
    updates = Updates()
    for step in (3, 4, 4, 7):
        updates.leave_out(step, "x", "because")
    assert (updates.in_a_row, updates.counts["x"]) == (1, 3)
    assert updates.streak(8) == 1 and updates.streak(9) == 0 and updates.left_out_at(7)


# --- corruption


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.float64])
def test_the_hash_hears_every_single_bit(dtype: torch.dtype):
    tensor = torch.arange(33).to(dtype)
    whole = int(hash_of(tensor))
    for at in range(tensor.nbytes * 8):
        raw = tensor.clone()
        raw.view(torch.uint8)[at // 8] ^= 1 << (at % 8)
        if not torch.isnan(raw.double()).any():  # every NaN is one to a conversion
            assert int(hash_of(raw)) != whole, at


def test_a_layer_that_computes_wrongly_once_is_heard(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"silent corruption: net\.0 \(step 4, rank 0\)"):
        train(tmp_path, RecomputeCheck(every=2), WrongLayer([4]))


@pytest.mark.parametrize("case", ["dropout", "language model", "recomputed layers"])
def test_checking_changes_nothing_and_finds_nothing_where_nothing_is(tmp_path: Path, case: str):
    def stage() -> Any:
        if case == "dropout":
            return DummyStage(Clock(), dropout=0.5)
        return tiny_stage(tmp_path, ema_decay=0.5, activation_checkpointing=case == "recomputed layers")

    ends = []
    for checks in (
        [],
        [RecomputeCheck(every=1), FiniteGuard(), SpikeGuard(), Rewind(every=1), StragglerReport(every=2)],
    ):
        L.seed_everything(1)
        rows = None if case == "dropout" else Rows([random_rows(2, seed=i) for i in range(6)])
        trained, _ = train(tmp_path, *checks, steps=6, stage=stage(), data=rows)
        ends.append(torch.cat([p.detach().flatten() for p in trained.parameters()]))
        if checks:
            assert checks[0].checked == 6
    assert torch.equal(*ends)


def test_the_layers_of_a_model_are_found(tmp_path: Path):
    names = [name for name, _ in layers(tiny_stage(tmp_path))]
    assert names == ["model.lm.model.layers.0", "model.lm.model.layers.1"]
