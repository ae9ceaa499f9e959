"""Sampling by noise level, against a distribution whose clean image is known in closed form."""

from __future__ import annotations

import pytest
import torch

from MedDPMLib.diffusion.noise_levels import noise_levels, sample_levels
from MedDPMLib.errors import MedDPMError


def test_levels_fall_from_highest_to_lowest():
    levels = noise_levels(9, 0.03, 40)
    assert levels[0] == pytest.approx(40) and levels[-1] == pytest.approx(0.03) and len(levels) == 9
    assert all(a > b for a, b in zip(levels[:-1], levels[1:], strict=True))
    roots = [level ** (1 / 7) for level in levels]
    assert all(b - a == pytest.approx(roots[1] - roots[0]) for a, b in zip(roots[:-1], roots[1:], strict=True))


@pytest.mark.parametrize("arguments", [(0, 0.1, 1), (3, 1, 1), (3, 0, 1), (3, 2, 1)])
def test_levels_that_make_no_sense_are_refused(arguments):
    with pytest.raises(MedDPMError, match="at least one step"):
        noise_levels(*arguments)


def _normal(mean: float, deviation: float):
    """The estimate of x0 where images are normal numbers of this mean and deviation."""

    def estimate(x: torch.Tensor, sigma: float) -> torch.Tensor:
        share = deviation**2 / (deviation**2 + sigma**2)
        return mean + share * (x - mean)

    return estimate


def test_a_normal_distribution_is_drawn_as_the_closed_form_says():
    """The exact path from x at sigma is mean + (x - mean) sqrt((d^2 + low^2) / (d^2 + sigma^2)), then its estimate."""
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high, mean, deviation = 0.02, 80.0, 0.4, 0.3
    errors = []
    for steps in (20, 40, 80):
        drawn = sample_levels(_normal(mean, deviation), noise, noise_levels(steps, low, high))
        x = noise * high
        exact = mean + (x - mean) * ((deviation**2 + low**2) / (deviation**2 + high**2)) ** 0.5
        exact = _normal(mean, deviation)(exact, low)
        errors.append(float((drawn - exact).abs().max()))
    assert errors[0] < 0.1 and errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3  # second order
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.03)


def test_a_network_that_knows_the_image_draws_it_and_progress_is_called_for_every_step():
    image, calls = torch.randn(2, 3), []
    noise = torch.randn(2, 3)
    drawn = sample_levels(
        lambda x, sigma: image, noise, noise_levels(5, 0.1, 10), progress=lambda step, x0: calls.append((step, x0))
    )
    torch.testing.assert_close(drawn, image)
    assert [step for step, _ in calls] == [1, 2, 3, 4, 5] and all(x0 is image for _, x0 in calls)


def test_one_step_is_the_estimate_at_the_highest_level():
    seen = []

    def estimate(x, sigma):
        seen.append(sigma)
        return x / sigma

    noise = torch.randn(4)
    torch.testing.assert_close(sample_levels(estimate, noise, noise_levels(1, 0.1, 10)), noise)
    assert seen == [10]
