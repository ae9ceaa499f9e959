"""The loss: closed forms, and the same error measured in three spaces."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.recipes.recipe import load_recipe
from MedDPMLib.train.objective import HUBER_DELTA, Objective, ema_decay, learning_rate

SCHEDULE = make_schedule("cosine", 100)
PLAIN = load_recipe("brats").training
T = torch.tensor([3, 50, 97])


def objective(prediction="noise", **changes) -> Objective:
    return Objective(replace(PLAIN, **changes), prediction, SCHEDULE)


def batch(seed=0):
    """x0, noise, an estimate of x0, and weights."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise, error = (torch.randn((3, 2, 4, 5, 6), generator=generator) for _ in range(3))
    return x0, noise, x0 + 0.1 * error, torch.rand((3, 1, 4, 5, 6), generator=generator)


def predicted(prediction: str, estimate, x0, noise, t):
    """What a network of this kind predicts when its estimate of x0 is ``estimate``; in float64."""
    alpha_bar = SCHEDULE.exact_alpha_bar[t].view(-1, 1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    implied_noise = (signal * (x0.double() - estimate.double()) + sigma * noise.double()) / sigma
    return {
        "x0": estimate.double(),
        "noise": implied_noise,
        "v": signal * implied_noise - sigma * estimate.double(),
    }[prediction].float()


@pytest.mark.parametrize("space", ["noise", "x0", "v"])
def test_the_loss_does_not_depend_on_what_is_predicted(space):
    x0, noise, estimate, weight = batch()
    losses = [
        objective(prediction, loss_space=space, loss="l2").loss(
            predicted(prediction, estimate, x0, noise, T), x0, noise, T, weight
        )
        for prediction in ("noise", "x0", "v")
    ]
    torch.testing.assert_close(losses, [losses[0]] * 3, rtol=2e-3, atol=0)


def test_unweighted_losses_are_means():
    x0, noise, estimate, _ = batch()
    ones = torch.ones((3, 1, 4, 5, 6))
    for loss, function in [
        ("l1", torch.nn.L1Loss()),
        ("l2", torch.nn.MSELoss()),
        ("huber", torch.nn.HuberLoss(delta=HUBER_DELTA)),
    ]:
        found = objective("x0", loss=loss, loss_space="x0").loss(estimate, x0, noise, T, ones)
        torch.testing.assert_close(found, function(estimate, x0))


def test_weights_are_relative_and_an_example_counts_by_itself():
    x0, noise, estimate, weight = batch()
    measure = objective("x0", loss_space="x0", sigma_floor=0.2)
    whole = measure.loss(estimate, x0, noise, T, weight)
    torch.testing.assert_close(measure.loss(estimate, x0, noise, T, 7 * weight), whole)
    single = [measure.loss(*(v[n : n + 1] for v in (estimate, x0, noise, T, weight))) for n in range(3)]
    torch.testing.assert_close(torch.stack(single).mean(), whole)
    # Where nothing is wrong, weight costs nothing but its share.
    half = torch.zeros_like(weight)
    half[..., :3] = 1
    torch.testing.assert_close(
        measure.loss(estimate, x0, noise, T, half),
        measure.loss(estimate[..., :3], x0[..., :3], noise[..., :3], T, half[..., :3]),
    )


def test_the_floor_is_that_of_the_compact_recipe():
    """The weighted L1 of x0 over max(sigma, floor), written out."""
    x0, noise, estimate, weight = batch()
    for n, t in enumerate(T.tolist()):
        sigma = float((1 - SCHEDULE.exact_alpha_bar[t]).sqrt())
        expected = ((estimate - x0).abs() * weight)[n].mean() / weight[n].mean() / max(sigma, 0.15)
        one = slice(n, n + 1)
        found = objective("x0", loss_space="x0", sigma_floor=0.15).loss(
            estimate[one], x0[one], noise[one], T[one], weight[one]
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_the_error_of_x0_alike_in_every_space(gamma):
    """Hang et al. 2023: min(SNR, gamma) times the squared error of x0, whatever is compared."""
    x0, noise, estimate, _ = batch()
    ones = torch.ones((3, 1, 4, 5, 6))
    t = torch.tensor([10, 50, 80])
    alpha_bar = SCHEDULE.exact_alpha_bar[t]
    snr = (alpha_bar / (1 - alpha_bar)).clamp(max=gamma)
    expected = (snr * (estimate - x0).double().square().mean((1, 2, 3, 4))).mean().float()
    for space in ("noise", "x0", "v"):
        found = objective(space, loss="l2", loss_space=space, min_snr=gamma).loss(
            predicted(space, estimate, x0, noise, t), x0, noise, t, ones
        )
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_no_weight_leaves_every_timestep_as_it_is():
    assert torch.equal(objective().timestep_weight, torch.ones(100))


def test_the_learning_rate_rises_then_falls_to_its_share():
    settings = load_recipe("brain-anatomy").training
    rates = [learning_rate(settings, i, 4000) for i in range(4000)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(settings.learning_rate) and abs(top - settings.warm_up) <= 1
    assert rates[-1] == pytest.approx(settings.min_lr_ratio * settings.learning_rate, rel=1e-2)
    assert all(a > b for a, b in itertools.pairwise(rates[top + 1 :]))


def test_the_papers_learning_rate_is_constant_and_its_average_begins_late():
    assert {learning_rate(PLAIN, i, 100_000) for i in range(0, 100_000, 999)} == {1e-5}
    assert [ema_decay(PLAIN, i) for i in (1, 1999, 2000, 90_000)] == [0, 0, 0.995, 0.995]
    compact = load_recipe("brain-anatomy").training
    assert ema_decay(compact, 1) == pytest.approx(2 / 11) and ema_decay(compact, 10_000) == compact.ema


def test_the_learning_rate_may_fall_as_the_inverse_square_root():
    """Whatever the number of iterations: a run may be made longer."""
    settings = replace(
        PLAIN, learning_rate=2e-3, warm_up=10, inverse_sqrt_from=100, min_lr_ratio=0.05, ema=0.9999, ema_start=1
    )
    assert learning_rate(settings, 4, 500) == pytest.approx(1e-3)
    for iterations in (500, 5000):
        assert learning_rate(settings, 99, iterations) == 2e-3
        assert learning_rate(settings, 400, iterations) == pytest.approx(1e-3)
        assert learning_rate(settings, 10**6, iterations) == pytest.approx(1e-4)
    # And the average is one over a fixed share of the iterations: a ninth of them counts for what e is.
    kept = 1.0
    for iteration in range(4500, 5001):
        kept *= ema_decay(settings, iteration)
    assert kept == pytest.approx((4500 / 5000) ** 9, rel=0.01)
