"""Losses of vocoders: least-squares GAN, features, relative scores, pitch. All are sums over judges, in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.nn.discriminators import Judgement

FEATURE_FACTOR = 2.0  # HiFi-GAN's own, inside of its feature loss


def judging_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """Least squares (https://arxiv.org/abs/1611.04076): judges should say 1 of what is real and 0 of what was made."""
    return _sum([(1.0 - r.scores).square().mean() + g.scores.square().mean() for r, g in zip(real, made, strict=True)])


def persuading_loss(made: list[Judgement]) -> Tensor:
    """Least squares: judges should say 1 of what was made."""
    return _sum([(1.0 - judgement.scores).square().mean() for judgement in made])


def feature_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """Distance of the judges' inner views of what was made from those of what is real, which have no gradient."""
    distances = [
        F.l1_loss(theirs.float(), ours.float().detach())
        for r, g in zip(real, made, strict=True)
        for ours, theirs in zip(r.features, g.features, strict=True)
    ]
    return FEATURE_FACTOR * _sum(distances)


def relative_loss(better: list[Judgement], worse: list[Judgement], tau: float = 0.04) -> Tensor:
    """Truncated pointwise relativistic loss of HiFTNet (https://arxiv.org/abs/2309.09493, equation 7).

    Where the lead of `better` over `worse` is under its median, it should come up to it; no judge adds more than `tau`. Judges
    are trained with what is real as the better, the vocoder with what it made as the better.
    """
    return _sum([_relative(b.scores, w.scores, tau) for b, w in zip(better, worse, strict=True)])


def pitch_loss(heard_hz: Tensor, true_hz: Tensor) -> Tensor:
    """Mean absolute distance of (B, F) pitches, in hertz; unvoiced is 0."""
    return F.l1_loss(heard_hz.float(), true_hz.float())


def _relative(better: Tensor, worse: Tensor, tau: float) -> Tensor:
    lead = better - worse
    short = lead - lead.median()
    behind = short < 0
    # Of constant scores none is behind the median; their mean would be 0 / 0.
    distance = (short.square() * behind).sum() / behind.sum().clamp(min=1)
    return tau - F.relu(tau - distance)


def _sum(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).sum()
