"""A codebook shaped by gradients, and letters read from vectors."""

import pytest
import torch

from speechlm.nn.deep_fsq import DeepFSQ
from speechlm.nn.letter_ctc import LetterCTC, Letters


def vectors(seed: int = 0, frames: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(3, frames, 16, generator=torch.Generator().manual_seed(seed))
    real = torch.arange(frames)[None] < torch.tensor([frames, 40, 7])[:, None]
    return x, real


def test_codes_are_those_of_the_vectors_they_decode_to():
    torch.manual_seed(0)
    quantizer = DeepFSQ(16, [4, 4, 4], hidden=32).eval()
    x, real = vectors()
    out = quantizer(x, real)
    assert quantizer.num_codes == 64
    assert 0 <= int(out.codes.min()) and int(out.codes.max()) < 64
    torch.testing.assert_close(quantizer.decode(out.codes), out.vectors)
    assert len(out.codes.unique()) > 4


def test_quantisation_takes_over_step_by_step_and_the_last_step_is_whole():
    quantizer = DeepFSQ(16, [4, 4], hidden=8, init_updates=2, ramp_updates=9, fit_updates=3).train()
    x, real = vectors(frames=400)
    shares = []
    for _ in range(13):
        out = quantizer(x, real)
        shares.append(float((out.vectors != x).any(-1).float().mean()))
        assert (out.loss > 0) == (quantizer.ready and quantizer.share < 1)
        quantizer.update()
    assert shares[0] == 0
    assert shares[1] < 0.3
    assert shares[-1] == 1
    assert shares[3] < shares[7] < shares[-1]
    assert float((quantizer.eval()(x, real).vectors != x).any(-1).float().mean()) == 1


def loud(seed: int) -> torch.Tensor:
    """Vectors far from zero, of few directions, one of them a hundred times as loud as the others, as a Whisper's are."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 400, 4, generator=g) @ torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
    return x * torch.tensor([100.0] + [1.0] * 15) + 30


def test_the_start_uses_many_codes_of_vectors_that_are_far_from_zero_and_loud_in_one_direction():
    torch.manual_seed(0)
    quantizer = DeepFSQ(16, [4, 4, 4], hidden=64, init_updates=2, init_frames=1500, fit_updates=300).train()
    real = torch.ones(3, 400, dtype=torch.bool)
    for step in range(2):
        out = quantizer(loud(step), real)
        assert (out.codes == -1).all() and out.vectors.equal(loud(step))
        quantizer.update()
    x = loud(5)
    out = quantizer.eval()(x, real)
    assert len(out.codes.unique()) > 30
    spread = x.flatten(0, 1).std(0)
    lost = ((out.vectors - x) / spread).square().mean((0, 1))
    assert lost.max() < 0.8  # quiet dimensions are kept like the loud one
    assert quantizer.pool.numel() == 0


def test_frames_gathered_so_far_outlive_a_checkpoint():
    def run(quantizer: DeepFSQ, steps: range) -> DeepFSQ:
        for step in steps:
            quantizer(loud(step), torch.ones(3, 400, dtype=torch.bool))
            quantizer.update()
        return quantizer

    def fresh() -> DeepFSQ:
        torch.manual_seed(1)
        return DeepFSQ(16, [4, 4], hidden=8, init_updates=3, init_frames=600, fit_updates=5).train()

    broken = fresh()
    broken.load_state_dict(run(fresh(), range(2)).state_dict())
    whole, resumed = run(fresh(), range(3)).state_dict(), run(broken, range(2, 3)).state_dict()
    assert all(whole[name].equal(resumed[name]) for name in whole)


def test_padding_weighs_nothing():
    torch.manual_seed(0)
    quantizer = DeepFSQ(16, [4, 4], hidden=8, ramp_updates=5)
    x, real = vectors()
    other = torch.where(real[..., None], x, 99.0)
    torch.testing.assert_close(quantizer(x, real).loss, quantizer(other, real).loss)


def test_gradients_reach_what_is_below_and_every_network():
    quantizer = DeepFSQ(16, [4, 4], hidden=8)
    x, real = vectors()
    x.requires_grad_()
    quantizer(x, real).vectors.square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in quantizer.parameters())


def test_letters_are_read_after_a_few_steps_and_padding_is_not():
    torch.manual_seed(0)
    letters = Letters(per_token=2)
    reader = LetterCTC(16, letters)
    x = torch.randn(2, 12, 16)
    lens = torch.tensor([12, 9])
    texts = ["Good day!", "你好 ok"]
    assert reader.encode("Ab c?") == [letters.alphabet.index(c) + 1 for c in "ab c"]
    first = float(reader(x, lens, texts))
    changed = x.clone()
    changed[1, 9:] = 50.0
    assert float(reader(changed, lens, texts)) == pytest.approx(first)
    optimizer = torch.optim.Adam([*reader.parameters()], lr=0.1)
    for _ in range(60):
        loss = reader(x, lens, texts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first


def test_a_batch_without_letters_costs_nothing():
    reader = LetterCTC(16, Letters())
    assert float(reader(torch.randn(1, 5, 16), torch.tensor([5]), ["你好"])) == 0.0


@pytest.mark.parametrize("bad", [{"before": -1.0}, {"per_token": 0}, {"alphabet": "aa"}])
def test_letters_out_of_range_are_refused(bad: dict[str, object]):
    with pytest.raises(ValueError, match="letters need"):
        Letters(**bad)
