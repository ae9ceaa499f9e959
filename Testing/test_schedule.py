"""Noise schedules and the algebra of image, noise and prediction."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.diffusion.names import MAX_TIMESTEPS, PREDICTIONS
from MedDPMLib.diffusion.schedule import make_schedule, posterior_coefficients, schedule_names
from MedDPMLib.errors import MedDPMError

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_FILES = ("official_whole_head.npz", "official_brats.npz")

names = st.sampled_from(schedule_names())
predictions = st.sampled_from(PREDICTIONS)


def images(seed: int, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def perfect(schedule, x0, noise, t, prediction):
    """What a network of this prediction type returns when it knows image and noise."""
    alpha_bar = schedule.exact_alpha_bar[t].view(-1, 1, 1, 1, 1)
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0
    return {"noise": noise, "x0": x0, "v": v}[prediction]


# Against the published networks


@pytest.mark.parametrize("file", GOLDEN_FILES)
def test_cosine_is_the_official_schedule(file):
    golden = np.load(GOLDEN / file)
    schedule = make_schedule("cosine", 250)
    assert schedule.timesteps == 250
    np.testing.assert_allclose(schedule.betas.numpy(), golden["betas"], rtol=1e-6, atol=0)
    np.testing.assert_allclose(schedule.alpha_bar.numpy(), golden["alphas_cumprod"], rtol=1e-6, atol=0)


def posterior(t: int) -> tuple[float, float, float]:
    """Weights of x0 and x_t in the mean, and log variance, of the official schedule; 1e-20 stands for no variance."""
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), make_schedule("cosine", 250).exact_alpha_bar])
    weight_x0, weight_x, variance = posterior_coefficients(alpha_bar[t + 1], alpha_bar[t])
    return weight_x0.item(), weight_x.item(), math.log(max(variance.item(), 1e-20))


@pytest.mark.parametrize("file", GOLDEN_FILES)
@pytest.mark.parametrize("t", (0, 125))
def test_posterior_is_the_official_one(file, t):
    golden = np.load(GOLDEN / file)
    schedule = make_schedule("cosine", 250)
    x, eps, when = torch.from_numpy(golden["x"]), torch.from_numpy(golden[f"eps_t{t}"]), torch.tensor([t])
    x0 = schedule.x0_from(eps, x, when, "noise").clamp(-1, 1)
    weight_x0, weight_x, log_variance = posterior(t)
    mean = weight_x0 * x0 + weight_x * x
    np.testing.assert_allclose(mean.numpy(), golden[f"mean_t{t}"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(log_variance, golden[f"logvar_t{t}"].item(), rtol=1e-6)


@pytest.mark.parametrize("file", GOLDEN_FILES)
def test_posterior_at_the_second_timestep_implies_an_x0_that_was_clipped(file):
    """There is no golden noise at t = 1, but its mean gives x0 back, which fills [-1, 1] to its ends."""
    golden = np.load(GOLDEN / file)
    weight_x0, weight_x, log_variance = posterior(1)
    x0 = (golden["mean_t1"] - weight_x * golden["x"]) / weight_x0
    assert x0.min().item() == pytest.approx(-1, abs=1e-5)
    assert x0.max().item() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(log_variance, golden["logvar_t1"].item(), rtol=1e-6)


# Schedules


@given(name=names, timesteps=st.integers(1, 1500))
@settings(deadline=None, max_examples=60)
def test_every_schedule_goes_from_image_to_noise(name, timesteps):
    schedule = make_schedule(name, timesteps)
    assert schedule.betas.shape == schedule.alpha_bar.shape == (timesteps,)
    assert schedule.betas.dtype == schedule.alpha_bar.dtype == torch.float32
    assert schedule.exact_alpha_bar.dtype == torch.float64
    assert (schedule.betas > 0).all() and (schedule.betas <= 0.999001).all()
    assert (schedule.exact_alpha_bar > 0).all() and (schedule.exact_alpha_bar < 1).all()
    assert (schedule.exact_alpha_bar.diff() < 0).all()
    if timesteps >= 100:
        assert schedule.alpha_bar[0] > 0.98
        assert schedule.alpha_bar[-1] < (0.03 if name == "exponential" else 1e-3)


@pytest.mark.parametrize("name", ("cosine", "sigmoid"))
def test_alpha_bar_depends_on_relative_time_only(name):
    """Timestep i - 1 stands for the time i / T; twice as fine, the same points are passed, but where beta is capped."""
    coarse, fine = make_schedule(name, 100).exact_alpha_bar, make_schedule(name, 200).exact_alpha_bar
    torch.testing.assert_close(coarse[:-1], fine[1::2][:-1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ("linear", "exponential"))
@pytest.mark.parametrize("timesteps", (50, 250, 1000))
def test_scaled_schedules_add_the_published_noise(name, timesteps):
    betas = make_schedule(name, timesteps).betas.double()
    assert betas[0].item() == pytest.approx(1e-4 * 1000 / timesteps, rel=1e-6)
    assert betas[-1].item() == pytest.approx(0.02 * 1000 / timesteps, rel=1e-6)
    grows = betas.diff() if name == "linear" else betas.log().diff()
    torch.testing.assert_close(grows, grows[:1].expand_as(grows), rtol=2e-3, atol=0)


def test_linear_stays_below_one_with_few_timesteps():
    assert make_schedule("linear", 10).betas[-1].item() == pytest.approx(0.999)


def test_sigmoid_is_the_published_curve():
    alpha_bar = make_schedule("sigmoid", 100).exact_alpha_bar

    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    for i in (1, 25, 50, 99):
        expected = (sigmoid(3) - sigmoid(6 * i / 100 - 3)) / (sigmoid(3) - sigmoid(-3))
        assert alpha_bar[i - 1].item() == pytest.approx(expected, rel=1e-9)


def test_schedules_agree_with_an_independent_implementation():
    from diffusers import DDPMScheduler

    cosine = DDPMScheduler(num_train_timesteps=250, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(make_schedule("cosine", 250).betas, cosine.betas, rtol=1e-6, atol=1e-8)
    linear = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    torch.testing.assert_close(make_schedule("linear", 1000).betas, linear.betas, rtol=1e-5, atol=1e-8)


def test_schedules_with_the_same_name_and_length_are_equal():
    schedule = make_schedule("cosine", 10)
    assert schedule == make_schedule("cosine", 10) == schedule.to("meta")
    assert schedule != make_schedule("cosine", 11) and schedule != make_schedule("linear", 10)


@pytest.mark.parametrize("name", ("cosin", "", "Cosine"))
def test_an_unknown_schedule_is_answered_with_those_that_exist(name):
    with pytest.raises(MedDPMError, match="cosine, linear, sigmoid, exponential"):
        make_schedule(name)


@pytest.mark.parametrize("timesteps", (0, -1, MAX_TIMESTEPS + 1, 10**12))
def test_an_impossible_number_of_timesteps_is_refused(timesteps):
    with pytest.raises(MedDPMError, match=str(timesteps)):
        make_schedule("cosine", timesteps)


# Image, noise and prediction


@given(
    name=names,
    prediction=predictions,
    seed=st.integers(0, 1000),
    ts=st.lists(st.integers(0, 99), min_size=3, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_a_perfect_prediction_gives_image_and_noise_back(name, prediction, seed, ts):
    schedule = make_schedule(name, 100)
    x0, noise, t = images(seed), images(seed + 1), torch.tensor(ts)
    x_t = schedule.add_noise(x0, t, noise)
    predicted = perfect(schedule, x0, noise, t, prediction)
    # Rounding of x_t (some 1e-7 of its size) is all that may be lost, multiplied by what each formula divides by.
    alpha_bar = schedule.exact_alpha_bar[t].view(-1, 1, 1, 1, 1)
    x0_error = (schedule.x0_from(predicted, x_t, t, prediction) - x0).abs() * alpha_bar.sqrt()
    noise_error = (schedule.noise_from(predicted, x_t, t, prediction) - noise).abs() * (1 - alpha_bar).sqrt()
    assert x0_error.max() < 4e-6 and noise_error.max() < 4e-6


def test_noise_has_the_variance_that_alpha_bar_says():
    schedule = make_schedule("cosine", 250)
    noise = torch.randn(2, 1, 50, 50, 50, generator=torch.Generator().manual_seed(0))
    x_t = schedule.add_noise(torch.full_like(noise, 0.7), torch.tensor([40, 200]), noise)
    for i, t in enumerate((40, 200)):
        alpha_bar = schedule.exact_alpha_bar[t].item()
        assert x_t[i].mean().item() == pytest.approx(0.7 * math.sqrt(alpha_bar), abs=0.02)
        assert x_t[i].std().item() == pytest.approx(math.sqrt(1 - alpha_bar), rel=0.02)


@given(name=names, seed=st.integers(0, 1000), t=st.integers(0, 249))
@settings(deadline=None, max_examples=40)
def test_v_is_the_noised_image_turned_by_a_right_angle(name, seed, t):
    """Salimans and Ho 2022: with alpha_bar = cos^2 phi, x_t = cos phi x0 + sin phi noise and v = d x_t / d phi."""
    schedule = make_schedule(name, 250)
    x0, noise, when = images(seed, 1), images(seed + 1, 1), torch.tensor([t])
    phi, step = torch.acos(schedule.exact_alpha_bar[t].sqrt()), 1e-5
    before, after = (
        torch.cos(angle) * x0.double() + torch.sin(angle) * noise.double() for angle in (phi - step, phi + step)
    )
    x_t, v = schedule.add_noise(x0, when, noise), (after - before) / (2 * step)
    torch.testing.assert_close(schedule.x0_from(v, x_t, when, "v"), x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(schedule.noise_from(v, x_t, when, "v"), noise, rtol=0, atol=1e-5)


@given(alpha_bar=st.floats(1e-8, 0.9999), share=st.floats(0.001, 0.999))
def test_the_posterior_is_bayes_rule(alpha_bar, share):
    """Precisions of two Gaussians add: x_previous as x0 predicts it, and as x_t remembers it."""
    previous = alpha_bar + (1 - alpha_bar) * share
    alpha = alpha_bar / previous
    from_x0, from_x = 1 / (1 - previous), alpha / (1 - alpha)
    weight_x0, weight_x, variance = posterior_coefficients(
        torch.tensor(alpha_bar, dtype=torch.float64), torch.tensor(previous, dtype=torch.float64)
    )
    assert variance.item() == pytest.approx(1 / (from_x0 + from_x), rel=1e-6)
    assert weight_x0.item() == pytest.approx(math.sqrt(previous) * from_x0 / (from_x0 + from_x), rel=1e-6)
    assert weight_x.item() == pytest.approx(math.sqrt(alpha) / (1 - alpha) / (from_x0 + from_x), rel=1e-6)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64))
@pytest.mark.parametrize("t_dtype", (torch.int64, torch.int32, torch.uint8))
def test_results_are_float32_whatever_comes_in(dtype, t_dtype):
    schedule = make_schedule("cosine", 250)
    x0, noise, t = images(0).to(dtype), images(1).to(dtype), torch.tensor([0, 100, 249], dtype=t_dtype)
    x_t = schedule.add_noise(x0, t, noise)
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t, schedule.add_noise(x0.float(), t.long(), noise.float()), rtol=0, atol=0)
    for prediction in PREDICTIONS:
        for tensor in (
            schedule.x0_from(x0, noise, t, prediction),
            schedule.noise_from(x0, noise, t, prediction),
        ):
            assert tensor.dtype == torch.float32


def test_an_unknown_prediction_type_is_refused():
    schedule = make_schedule("cosine", 10)
    x, t = images(0), torch.tensor([0, 1, 2])
    for convert in (schedule.x0_from, schedule.noise_from):
        with pytest.raises(MedDPMError, match="noise, x0, v"):
            convert(x, x, t, "epsilon")


def test_a_schedule_made_while_generating_serves_in_training():
    with torch.inference_mode():
        schedule = make_schedule("cosine", 10).to("cpu")
    predicted, t = images(0).requires_grad_(), torch.tensor([0, 5, 9])
    (schedule.alpha_bar[0] * schedule.x0_from(predicted, images(1), t, "v")).sum().backward()
    assert predicted.grad.abs().max() > 0
