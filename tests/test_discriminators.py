"""Judges and what the vocoder learns from them."""

import pytest
import torch
from torch import Tensor

from speechlm.nn.discriminators import Judgement, Jury, PeriodJudge, SpectrumJudge
from speechlm.nn.gan_losses import feature_loss, judging_loss, persuading_loss, pitch_loss, relative_loss


@pytest.fixture(scope="module")
def jury() -> Jury:
    torch.manual_seed(0)
    return Jury((2, 3, 11), ((256, 30, 150), (64, 10, 60)), (4, 8, 8), 4)


def judged(*scores: float) -> list[Judgement]:
    return [Judgement(torch.tensor([scores]), [torch.tensor([scores])])]


def test_shapes_are_those_of_the_published_judges():
    jury = Jury()
    assert sum(p.numel() for p in Jury((2, 3, 5, 7, 11), ()).parameters()) == pytest.approx(41.1e6, rel=0.01)
    with torch.no_grad():
        judgements = jury(torch.randn(1, 4800))
    assert len(judgements) == 8
    by_two = judgements[0]
    assert [tuple(f.shape) for f in by_two.features[:2]] == [(1, 32, 800, 2), (1, 128, 267, 2)]
    assert by_two.scores.shape == (1, 2 * by_two.features[-1].shape[2])
    assert [j.features[0].shape for j in judgements[5:]] == [(1, 32, 41, 513), (1, 32, 21, 1025), (1, 32, 97, 257)]
    assert judgements[5].features[3].shape == (1, 32, 41, 65)


def test_recordings_of_a_batch_are_judged_alone(jury: Jury):
    audio = torch.randn(3, 1001)
    together, alone = jury(audio), jury(audio[1:2])
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a.scores[1], b.scores[0], atol=1e-5)


@pytest.mark.parametrize("audio", [torch.randn(2, 999), torch.zeros(2, 999)], ids=["noise", "silence"])
def test_gradients_reach_every_weight_and_the_sound(jury: Jury, audio: Tensor):
    made = audio.clone().requires_grad_()
    real, fake = jury(torch.randn(2, 999)), jury(made)
    jury.zero_grad()
    (judging_loss(real, fake) + relative_loss(real, fake)).backward(retain_graph=True)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in jury.parameters())
    made.grad = None
    (persuading_loss(fake) + feature_loss(real, fake) + relative_loss(fake, real)).backward()
    assert made.grad is not None and made.grad.isfinite().all() and made.grad.abs().sum() > 0


def test_losses_of_known_scores():
    assert judging_loss(judged(1.0, 1.0), judged(0.0, 0.0)).item() == 0.0
    assert judging_loss(judged(0.0, 1.0), judged(0.0, 1.0)).item() == pytest.approx(1.0)
    assert persuading_loss(judged(1.0, 0.0)).item() == pytest.approx(0.5)
    assert feature_loss(judged(0.0, 0.0), judged(1.0, 2.0)).item() == pytest.approx(3.0)
    assert pitch_loss(torch.tensor([[100.0, 0.0]]), torch.tensor([[110.0, 10.0]])).item() == pytest.approx(10.0)


def test_the_relative_loss_asks_for_the_median_lead_and_is_bounded():
    # Leads 0.0, 0.1, 0.2: only the first is behind the median, by 0.1.
    assert relative_loss(judged(0.0, 0.1, 0.2), judged(0.0, 0.0, 0.0)).item() == pytest.approx(0.01)
    assert relative_loss(judged(-9.0, 0.0, 9.0), judged(0.0, 0.0, 0.0)).item() == pytest.approx(0.04)
    assert relative_loss(judged(1.0, 1.0), judged(0.0, 0.0)).item() == 0.0


def test_the_real_sound_has_no_gradient_from_the_features():
    real, made = torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    feature_loss([Judgement(real, [real])], [Judgement(made, [made])]).backward()
    assert real.grad is None and made.grad is not None


def test_an_empty_jury_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Jury((), ())
    assert len(PeriodJudge(3, (4, 4))(torch.randn(1, 50))) == len(SpectrumJudge(64, 16, 64, 4)(torch.randn(1, 50))) == 1
