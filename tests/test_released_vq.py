"""The released codebook update: every training forward counts, unused codes come back late, ranks own segments."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from speechlm.nn.released_vq import ReleasedVQ

DIM, CODES = 4, 16


def frames(seed: int, num: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real = torch.ones(2, num, dtype=torch.bool)
    real[1, num - 5 :] = False
    return torch.randn(2, num, DIM, generator=generator), real


def test_every_training_forward_moves_the_codebook_and_the_optimizer_step_does_not():
    vq = ReleasedVQ(DIM, CODES).train()
    for seed in range(2):
        before = vq.codebook.clone()
        vq(*frames(seed))
        assert not torch.equal(vq.codebook, before)
    after = vq.codebook.clone()
    assert vq.update() == {"restarted": 0.0}
    assert torch.equal(vq.codebook, after) and int(vq.num_updates) == 2
    vq.eval()(*frames(3))
    assert torch.equal(vq.codebook, after)


def test_codes_are_those_of_the_codebook_before_the_update():
    vq = ReleasedVQ(DIM, CODES).train()
    x, real = frames(0)
    expected = torch.cdist(x, vq.codebook.expand(2, -1, -1).clone()).argmin(dim=-1)
    assert torch.equal(vq(x, real).codes, expected)


def test_a_code_that_is_never_used_comes_back_at_the_second_restart_and_counts_one():
    """Smoothing keeps it just above 0.99 ** 100 at the first."""
    vq = ReleasedVQ(DIM, CODES).train()
    vq.codebook[0] = vq.ema_weight[0] = 1e3  # far from every frame
    generator = torch.Generator().manual_seed(0)
    real = torch.ones(1, 600, dtype=torch.bool)
    restarted = []
    for _ in range(200):
        x = torch.randn(1, 600, DIM, generator=generator)
        vq(x, real)
        restarted.append(vq.update()["restarted"])
    assert restarted[99] == 0.0 and restarted[199] >= 1.0
    assert vq.codebook[0].abs().max() < 10 and vq.ema_count[0] == 1.0
    assert bool((vq.codebook[0] == x[0]).all(dim=1).any())


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    vq = ReleasedVQ(DIM, CODES, decay=0.5, restart_every=2).train()
    for seed in range(4):  # at the second update smoothing keeps every code alive
        x, real = frames(seed)
        vq(x[rank : rank + 1] + 100 * rank, real[rank : rank + 1])  # the ranks' frames lie far apart
    torch.save({**vq.state_dict(), "restarted": vq.update()["restarted"]}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_each_rank_restarts_its_own_half_from_its_own_frames(tmp_path: Path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    fresh = states[0]["ema_count"] == 1.0
    assert int(fresh.sum()) == states[0]["restarted"] > 0
    far = states[0]["codebook"].mean(dim=1) > 50
    assert not far[:8][fresh[:8]].any() and far[8:][fresh[8:]].all()
    assert fresh[:8].any() and fresh[8:].any()


def test_ranks_that_do_not_divide_the_codebook_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("speechlm.nn.released_vq.is_distributed", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="3 ranks do not divide 16 codes"):
        ReleasedVQ(DIM, CODES)._segment()
