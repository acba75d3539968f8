"""Flow matching: known solutions, and what the mean is over."""

import math

import pytest
import torch
from torch import Tensor

from speechlm.nn.flow import SIGMA_MIN, cosine, cosine_times, euler, flow_loss, guided, path_sample


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_path_begins_in_the_noise_ends_in_the_data_and_moves_as_it_says():
    z, x_1 = noise(3, 4, 5), noise(3, 4, 5, seed=1)
    times = torch.tensor([0.0, 0.3, 1.0])
    x_t, dx_t = path_sample(z, x_1, times)
    assert torch.equal(x_t[0], z[0])
    assert torch.allclose(x_t[2], x_1[2] + SIGMA_MIN * z[2], atol=1e-6)
    later, _ = path_sample(z, x_1, times + 0.01)
    assert torch.allclose((later - x_t) / 0.01, dx_t, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_exact_velocity_carries_noise_to_data(steps: int):
    """To one point the paths are straight, so that Euler's steps are exact however few."""
    x_1, z = noise(2, 3, 7), noise(2, 3, 7, seed=1)

    def velocity(x: Tensor, t: Tensor, step: int) -> Tensor:
        start = (x - t * x_1) / (1 - (1 - SIGMA_MIN) * t)
        return x_1 - (1 - SIGMA_MIN) * start

    assert torch.allclose(euler(velocity, z, cosine_times(steps)), x_1, atol=1e-4)


def test_the_exact_velocity_carries_noise_to_a_gaussian():
    """Data N(m, s²): the velocity at (x, t) is m + (t s² - (1 - t)) / (t² s² + (1 - t)²) (x - t m)."""
    m, s = 3.0, 0.5

    def velocity(x: Tensor, t: Tensor, step: int) -> Tensor:
        return m + (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2) * (x - t * m)

    made = euler(velocity, noise(1, 1, 20_000), torch.linspace(0, 1, 101))
    assert made.mean() == pytest.approx(m, abs=0.02)
    assert made.std() == pytest.approx(s, abs=0.02)


def test_times_are_a_cosine_dense_near_the_noise():
    assert cosine_times(2).tolist() == pytest.approx([0.0, 1 - math.sqrt(0.5), 1.0])
    assert (cosine_times(10).diff().diff() > 0).all()
    assert cosine(torch.tensor(0.5)).item() == pytest.approx(1 - math.cos(math.pi / 4))


def test_steps_are_numbered_and_timed():
    seen = []

    def velocity(x: Tensor, t: Tensor, step: int) -> Tensor:
        seen.append((step, round(t.item(), 4)))
        return x

    euler(velocity, noise(1, 1, 1), torch.tensor([0.0, 0.25, 1.0]))
    assert seen == [(0, 0.0), (1, 0.25)]


def test_guidance_goes_away_from_what_is_said_of_nothing():
    one, other = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 1.0)
    assert guided(one, other, 0.7).item() == pytest.approx(1.7 * 2 - 0.7 * 1)
    assert torch.equal(guided(one, other, 0.0), one)


def test_the_loss_is_the_mean_over_real_frames():
    v, target = torch.zeros(2, 2, 3), torch.tensor([[[1.0, 2.0, 9.0]] * 2, [[3.0, 9.0, 9.0]] * 2])
    real = torch.tensor([[True, True, False], [True, False, False]])
    assert flow_loss(v, target, real).item() == pytest.approx((1 + 4 + 9) / 3)
