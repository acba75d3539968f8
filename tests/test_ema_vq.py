"""The codebook: made from data, moved once per optimizer step, the same for any number of ranks."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.kmeans import kmeans, nearest

DIM, CODES = 4, 16


@pytest.fixture
def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def frames(step: int, num: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """A global batch of two recordings with padding."""
    generator = torch.Generator().manual_seed(step)
    real = torch.ones(2, num, dtype=torch.bool)
    real[1, num - 5 :] = False
    return torch.randn(2, num, DIM, generator=generator), real


def make(**settings) -> EmaVQ:
    return EmaVQ(DIM, CODES, **{"init_updates": 2, "restart_every": 3, "restart_below": 0.95, **settings}).train()


def train(vq: EmaVQ, steps: int, rows: slice = slice(None)) -> EmaVQ:
    for step in range(steps):
        x, real = frames(step)
        vq(x[rows], real[rows])
        vq.update()
    return vq


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    vq = train(make(), 9, slice(rank, rank + 1))
    torch.save(vq.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_make_the_codebook_that_one_rank_makes_of_the_same_batch(tmp_path: Path, free_port: int):
    mp.spawn(_rank, (free_port, str(tmp_path)), nprocs=2)
    one = train(make(), 9).state_dict()
    for rank in range(2):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(two, one)
    assert not torch.equal(one["codebook"], make().codebook)


def test_vectors_pass_unquantised_until_the_codebook_is_made_from_them():
    vq = make(init_frames_per_code=2)
    x, real = frames(0)
    out = vq(x, real)
    assert torch.equal(out.vectors, x) and torch.all(out.codes == -1) and not vq.ready
    train(vq, 2)
    assert vq.ready and vq.pool.numel() == 0
    seen = torch.cat([frames(step)[0][frames(step)[1]] for step in range(2)])
    near = nearest(seen, vq.codebook)
    assert (seen - vq.codebook[near]).square().mean() < 0.5 * seen.square().mean()


def test_micro_batches_of_one_step_make_the_averages_of_the_whole_batch():
    whole, split = train(make(restart_every=0), 2), train(make(restart_every=0), 2)
    split.load_state_dict(whole.state_dict())
    x, real = frames(7)
    whole(x, real)
    for row in range(2):
        split(x[row : row + 1], real[row : row + 1])
    whole.update(), split.update()
    torch.testing.assert_close(split.state_dict(), whole.state_dict())


def test_a_forward_pass_alone_changes_nothing():
    vq = train(make(), 4)
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    for _ in range(3):
        vq(*frames(5))
    vq.eval()
    vq(*frames(6))
    torch.testing.assert_close(vq.state_dict(), before)


def test_padding_weighs_nothing():
    ours, others = train(make(), 3), train(make(), 3)
    x, real = frames(9)
    noisy = torch.where(real[..., None], x, torch.full_like(x, 1e3))
    assert torch.equal(ours(x, real).loss, others(noisy, real).loss)
    ours.update(), others.update()
    torch.testing.assert_close(ours.codebook, others.codebook)


def test_an_unused_code_decays_as_released_and_is_first_caught_at_the_second_restart():
    vq = EmaVQ(DIM, CODES, init="random", restart_every=0).train()
    vq.codebook[0] = vq.ema_weight[0] = 100.0  # nobody comes here
    counts = []
    for step in range(200):
        vq(*frames(step))
        vq.update()
        counts.append(float(vq.ema_count[0]))
    assert 0.3660 < counts[99] < 0.3670 and counts[99] > 0.99**100
    assert 0.12 < counts[199] < 0.15


def test_dead_codes_become_current_frames():
    vq = train(make(restart_every=0), 3)
    vq.restart_every, vq.restart_below = 1, 0.5
    vq.ema_count[3] = vq.ema_weight[3] = 0.0
    x, real = frames(11)
    vq(x, real)
    assert vq.update()["restarted"] >= 1
    assert any(torch.equal(vq.codebook[3], frame) for frame in x[real])
    assert 0 < vq.ema_count[3] <= 1.0


def test_more_dead_codes_than_frames_restart_as_far_as_frames_last():
    vq = make(init="random", restart_every=1, restart_below=10.0)
    x = torch.randn(1, 3, DIM)
    vq(x, torch.ones(1, 3, dtype=torch.bool))
    assert vq.update()["restarted"] == 3.0


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_a_codebook_goes_on_from_its_checkpoint_as_if_never_stopped(stop_at: int):
    unbroken = train(make(), 8)
    first = train(make(), stop_at)
    second = make()
    second.load_state_dict(first.state_dict())
    for step in range(stop_at, 8):
        second(*frames(step))
        second.update()
    torch.testing.assert_close(second.state_dict(), unbroken.state_dict(), rtol=0, atol=0)


def test_gradients_pass_straight_through_and_the_loss_pulls_vectors_to_their_codes():
    vq = train(make(), 4)
    x, real = frames(1)
    x.requires_grad_(True)
    out = vq(x, real)
    out.vectors.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    x.grad = None
    vq(x, real).loss.backward()
    towards = vq.codebook[vq(x, real).codes] - x.detach()
    assert torch.all((x.grad * towards)[real] <= 0) and torch.all(x.grad[~real] == 0)


def test_kmeans_finds_separate_clusters_and_fills_every_center():
    generator = torch.Generator().manual_seed(0)
    means = 10.0 * torch.eye(4)
    x = means.repeat_interleave(50, 0) + 0.1 * torch.randn(200, 4, generator=generator)
    centers = kmeans(x, 8, 10, generator)
    assert (x - centers[nearest(x, centers)]).norm(dim=1).max() < 1.0
    few = kmeans(x[:3], 8, 5, generator)
    assert len(few.unique(dim=0)) == 8


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="init must be 'kmeans', 'frames' or 'random', got 'mean'"):
        EmaVQ(DIM, CODES, init="mean")
    with pytest.raises(ValueError, match="init_updates >= 1"):
        EmaVQ(DIM, CODES, init_updates=0)


def test_a_small_batch_does_not_have_its_whole_codebook_restarted():
    vq = EmaVQ(DIM, 512, init="random", restart_every=50).train()  # 43 frames an update: 0.08 a code, under 0.99 ** 50
    restarted = 0.0
    for step in range(50):
        vq(*frames(step))
        restarted += vq.update()["restarted"]
    assert restarted == 0


def test_during_the_ramp_some_vectors_pass_and_at_its_end_none_does():
    vq = train(make(ramp_updates=4, init_updates=1), 1)
    x, real = frames(3)
    passed = (vq(x, real).vectors == x).all(dim=-1)
    assert 0 < passed.sum() < passed.numel()
    assert not (vq.eval()(x, real).vectors == x).all(dim=-1).any()
    train(vq.train(), 4)
    assert not (vq(x, real).vectors == x).all(dim=-1).any()
