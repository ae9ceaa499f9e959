"""Samplers against closed forms, an independent implementation, and their own promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.diffusion.names import METHODS, PREDICTIONS
from MedDPMLib.diffusion.samplers import sample, timestep_grid
from MedDPMLib.diffusion.schedule import make_schedule, schedule_names
from MedDPMLib.errors import MedDPMError

#: Every sampler with every behaviour: (method, eta).
VARIANTS = [("dpm-solver++", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("ddpm", 0.0)]

variants = pytest.mark.parametrize(("method", "eta"), VARIANTS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Gaussian:
    """The optimal denoiser of data N(condition, spread^2), voxel by voxel. Remembers what it was asked."""

    def __init__(self, schedule, spread, prediction="x0", error=0.0):
        self.schedule, self.spread, self.prediction, self.error = schedule, spread, prediction, error
        self.asked = {}

    def __call__(self, x, t, condition):
        self.asked[t[0].item()] = x.clone()
        alpha_bar = self.schedule.exact_alpha_bar[t].view(-1, 1, 1, 1, 1)
        signal, mean, x = alpha_bar.sqrt(), condition.double(), x.double()
        gain = signal * self.spread**2 / self.variance(alpha_bar)
        x0 = mean + gain * (x - signal * mean)
        if self.prediction == "x0":
            return x0.float()
        noise = (x - signal * x0) / (1 - alpha_bar).sqrt() + self.error
        return (noise if self.prediction == "noise" else signal * noise - (1 - alpha_bar).sqrt() * x0).float()

    def variance(self, alpha_bar):
        """Of x_t."""
        return alpha_bar * self.spread**2 + 1 - alpha_bar

    def flow(self, x_from, mean, t_from, t_to=None):
        """Closed-form solution of the probability-flow ODE from x at t_from to t_to, or to the clean image.

        The flow keeps the standard score of each voxel: (x_t - sqrt(alpha_bar) mean) / standard deviation of x_t.
        """
        first = self.schedule.exact_alpha_bar[t_from]
        last = torch.ones_like(first) if t_to is None else self.schedule.exact_alpha_bar[t_to]
        score = (x_from.double() - first.sqrt() * mean) / self.variance(first).sqrt()
        return last.sqrt() * mean + self.variance(last).sqrt() * score


def draw(denoiser, condition, schedule, *, generator=None, **options) -> torch.Tensor:
    """One channel for each of the condition's, from seed 0 unless told otherwise."""
    generator = seeded() if generator is None else generator
    return sample(denoiser, condition, schedule, shape=condition.shape, generator=generator, **options)


def means(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(99)) - 0.5


# Closed forms


def error_halfway(method: str, steps: int) -> float:
    """Largest error of the sampler against the exact flow at half of the timesteps.

    Halfway, because the last step, straight to the clean image, is first order by design. With these timesteps
    every grid of a power of two steps passes there, and with this schedule the first step is a finite one.
    """
    schedule = make_schedule("exponential", 7680)
    condition = means(1, 1, 4, 4, 4)
    denoiser = Gaussian(schedule, spread=0.5)
    draw(denoiser, condition, schedule, method=method, steps=steps, prediction="x0", clip=False)
    exact = denoiser.flow(denoiser.asked[7679], condition, 7679, 3839)
    return (denoiser.asked[3839] - exact).abs().max().item()


@pytest.mark.parametrize(("method", "order"), (("ddim", 1), ("dpm-solver++", 2)))
def test_order_of_convergence(method, order):
    errors = [error_halfway(method, steps) for steps in (16, 32, 64, 128)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.08)


@pytest.mark.parametrize(("method", "tolerance"), (("ddim", 0.01), ("dpm-solver++", 0.001)))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_deterministic_samplers_follow_the_flow_to_the_image(method, tolerance, prediction):
    schedule = make_schedule("cosine", 1000)
    condition = means(2, 1, 4, 4, 4)
    denoiser = Gaussian(schedule, 0.5, prediction)
    result = draw(denoiser, condition, schedule, method=method, steps=500, prediction=prediction, clip=False)
    exact = denoiser.flow(denoiser.asked[999], condition, 999)
    assert (result - exact).abs().max() < tolerance


@pytest.mark.parametrize(("method", "eta"), (("ddpm", 0.0), ("ddim", 1.0), ("ddim", 0.5)))
def test_stochastic_samplers_draw_from_the_data(method, eta):
    schedule = make_schedule("cosine", 1000)
    condition = means(2, 1, 32, 32, 32)
    options = {"method": method, "eta": eta, "steps": 1000, "prediction": "x0", "clip": False}
    drawn = (draw(Gaussian(schedule, 0.5), condition, schedule, **options) - condition).flatten()
    # Four standard errors of the mean and of the standard deviation of so many voxels.
    count = drawn.numel()
    assert abs(drawn.mean().item()) < 4 * 0.5 / math.sqrt(count)
    error = 4 * 0.5 / math.sqrt(2 * count)
    # The posterior's variance is the lower bound of the reverse step's: the spread comes out O(1 / T) small.
    assert 0.5 * 0.99 - error < drawn.std().item() < 0.5 + error
    # Independent of its voxel's mean, and of its neighbour.
    centred = (condition - condition.mean()).flatten()
    assert abs((drawn * centred).mean() / drawn.std() / centred.std()) < 4 / math.sqrt(count)
    assert abs((drawn[1:] * drawn[:-1]).mean() / drawn.var()) < 4 / math.sqrt(count)


@given(
    name=st.sampled_from(schedule_names()),
    timesteps=st.integers(1, 60),
    share=st.floats(0, 1),
    variant=st.sampled_from(VARIANTS),
    prediction=st.sampled_from(PREDICTIONS),
    clip=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_a_denoiser_that_knows_the_image_gives_it(name, timesteps, share, variant, prediction, clip):
    """Any schedule, any number of steps: data of no spread come out exactly, to float32 rounding."""
    schedule = make_schedule(name, timesteps)
    steps = 1 + round(share * (timesteps - 1))
    condition = means(2, 1, 2, 3, 4)
    options = {"method": variant[0], "eta": variant[1], "steps": steps, "prediction": prediction, "clip": clip}
    result = draw(Gaussian(schedule, 0.0, prediction), condition, schedule, **options)
    last = schedule.exact_alpha_bar[timestep_grid(timesteps, steps)[-1]].item()
    growth = math.sqrt(1 / last - 1) if prediction == "noise" else 0.0
    torch.testing.assert_close(result, condition, rtol=0, atol=2e-6 * (1 + growth))


@variants
@pytest.mark.parametrize("clip", (True, False))
def test_prediction_types_are_equivalent(method, eta, clip):
    schedule = make_schedule("cosine", 250)
    condition = means(2, 1, 4, 4, 4)
    options = {"method": method, "eta": eta, "steps": 25, "clip": clip}
    results = [
        draw(Gaussian(schedule, 0.8, prediction), condition, schedule, prediction=prediction, **options)
        for prediction in PREDICTIONS
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", (250, 40, 1))
def test_ddim_with_full_eta_is_ddpm(steps):
    schedule = make_schedule("cosine", 250)
    condition = means(2, 1, 4, 4, 4)
    denoiser = Gaussian(schedule, 0.8, "noise")
    ddpm = draw(denoiser, condition, schedule, method="ddpm", steps=steps)
    ddim = draw(denoiser, condition, schedule, method="ddim", eta=1.0, steps=steps)
    torch.testing.assert_close(ddim, ddpm, rtol=0, atol=1e-5)


# Against an independent implementation


def independent(method, eta, clip, prediction, schedule, steps):
    """diffusers' scheduler of the same settings, and the arguments of its step."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    common = {
        "num_train_timesteps": schedule.timesteps,
        "trained_betas": schedule.betas.numpy(),
        "prediction_type": {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}[prediction],
        "timestep_spacing": "trailing",
    }
    arguments = {}
    if method == "ddpm":
        scheduler = DDPMScheduler(**common, variance_type="fixed_small", clip_sample=clip)
    elif method == "ddim":
        scheduler = DDIMScheduler(**common, clip_sample=clip, set_alpha_to_one=True)
        arguments = {"eta": eta, "use_clipped_model_output": True}
    else:
        # Thresholding at a largest value of 1 is clipping to [-1, 1].
        scheduler = DPMSolverMultistepScheduler(**common, thresholding=clip, sample_max_value=1.0)
    # Theirs is a cumulative product in float32, of which 1 - alpha_bar keeps four digits at the first timesteps.
    scheduler.alphas_cumprod = schedule.exact_alpha_bar.clone()
    scheduler.set_timesteps(steps)
    return scheduler, arguments


@variants
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", (True, False))
@pytest.mark.parametrize("steps", (10, 25, 250))
def test_samplers_agree_with_an_independent_implementation(method, eta, prediction, clip, steps):
    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 4, 4, 4)
    denoiser = Gaussian(schedule, 0.8, prediction)
    largest = []
    options = {"method": method, "eta": eta, "steps": steps, "prediction": prediction, "clip": clip}
    ours = draw(
        denoiser, condition, schedule, progress=lambda step, steps, x0: largest.append(x0.abs().max().item()), **options
    )
    assert max(largest) == 1 if clip else max(largest) > 1, "the clip has to matter"

    scheduler, arguments = independent(method, eta, clip, prediction, schedule, steps)
    generator = seeded()
    x = torch.randn(condition.shape, generator=generator)
    for t in scheduler.timesteps:
        predicted = denoiser(x.float(), t.reshape(1), condition)
        if method != "dpm-solver++":
            arguments["generator"] = generator
        x = scheduler.step(predicted, t, x, **arguments).prev_sample
    torch.testing.assert_close(ours, x.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", (1, 2, 3, 7, 20, 33, 50, 249, 250))
def test_grid_is_the_trailing_one(steps):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=250, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert timestep_grid(250, steps) == scheduler.timesteps.tolist()[:steps]


@given(timesteps=st.integers(1, 1200), share=st.floats(0, 1))
def test_grid_starts_at_full_noise_and_descends_evenly(timesteps, share):
    steps = 1 + round(share * (timesteps - 1))
    grid = timestep_grid(timesteps, steps)
    assert len(grid) == steps and grid[0] == timesteps - 1 and grid[-1] >= 0
    stride = timesteps / steps
    for earlier, later in pairwise([*grid, -1]):
        assert earlier > later and abs(earlier - later - stride) <= 1


# What is promised to denoiser, generator and progress


@variants
def test_the_denoiser_is_asked_at_the_timesteps_it_was_trained_on(method, eta):
    schedule = make_schedule("cosine", 250)
    condition = means(2, 3, 2, 3, 4)
    weight = torch.ones(1, requires_grad=True)
    asked = []

    def denoiser(x, t, given_condition):
        assert x.shape == (2, 4, 2, 3, 4) and x.dtype == torch.float32
        assert t.shape == (2,) and t.dtype == torch.int64
        assert given_condition is condition
        asked.append(t.tolist())
        return (x * weight).bfloat16()

    result = sample(denoiser, condition, schedule, shape=(2, 4, 2, 3, 4), method=method, eta=eta, steps=20)
    assert asked == [[t, t] for t in timestep_grid(250, 20)]
    assert result.dtype == torch.float32 and result.shape == (2, 4, 2, 3, 4) and not result.requires_grad


def test_ddpm_draws_x_T_and_then_one_tensor_a_step():
    """The official sampler, written out: posterior mean of the clipped x0, plus noise except at t = 0."""
    schedule = make_schedule("cosine", 30)
    shape = (2, 1, 2, 3, 4)
    condition = means(*shape)
    denoiser = Gaussian(schedule, 0.8, "noise")
    generator, ours = seeded(5), seeded(5)
    result = sample(denoiser, condition, schedule, shape=shape, method="ddpm", steps=30, generator=ours)
    asked = dict(denoiser.asked)

    x = torch.randn(shape, generator=generator)
    for i in reversed(range(30)):
        torch.testing.assert_close(asked[i], x, rtol=0, atol=1e-5)
        t = torch.full((2,), i)
        x0 = schedule.x0_from(denoiser(x, t, condition), x, t, "noise").clamp(-1, 1)
        mean, log_variance = schedule.posterior(x0, x, t)
        x = mean + (0.5 * log_variance).exp() * torch.randn(shape, generator=generator) * (i > 0)
    torch.testing.assert_close(result, x, rtol=0, atol=1e-5)
    assert torch.equal(ours.get_state(), generator.get_state())


@variants
def test_number_of_draws(method, eta):
    schedule = make_schedule("cosine", 30)
    condition = means(2, 1, 2, 3, 4)
    ours, counted = seeded(), seeded()
    draw(Gaussian(schedule, 0.5), condition, schedule, generator=ours, method=method, eta=eta, steps=6, prediction="x0")
    for _ in range(1 + (6 if method == "ddpm" or eta else 0)):
        torch.randn(condition.shape, generator=counted)
    assert torch.equal(ours.get_state(), counted.get_state())


@variants
def test_an_image_does_not_depend_on_its_batch(method, eta):
    schedule = make_schedule("cosine", 250)
    condition = means(3, 1, 2, 3, 5)
    options = {"method": method, "eta": eta, "steps": 9, "prediction": "x0"}

    def denoiser(x, t, condition):
        return 0.5 * x * condition + 0.1 * condition

    def chosen(images, generator):
        return draw(denoiser, condition[images], schedule, generator=generator, **options)

    batch = chosen([0, 1, 2], [seeded(7), seeded(8), seeded(9)])
    assert torch.equal(chosen([2, 0], [seeded(9), seeded(7)]), batch[[2, 0]])
    for i in range(3):
        assert torch.equal(chosen([i], [seeded(7 + i)]), batch[i : i + 1])
        assert torch.equal(chosen([i], seeded(7 + i)), batch[i : i + 1])


@variants
def test_the_same_seed_gives_the_same_image(method, eta):
    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 2, 3, 4)
    options = {"shape": condition.shape, "method": method, "eta": eta, "steps": 9, "prediction": "x0"}

    def drawn(generator):
        return sample(Gaussian(schedule, 0.5), condition, schedule, generator=generator, **options)

    assert torch.equal(drawn(seeded(1)), drawn(seeded(1)))
    assert not torch.equal(drawn(seeded(1)), drawn(seeded(2)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(drawn(None), drawn(seeded(1)))
    with torch.inference_mode():
        inferred = drawn(seeded(1))
    assert torch.equal(inferred, drawn(seeded(1)))


@variants
def test_clip_holds_at_every_step_and_at_the_end(method, eta):
    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 4, 4, 4)
    seen = []
    options = {"method": method, "eta": eta, "steps": 12, "progress": lambda *report: seen.append(report)}
    result = draw(lambda x, t, condition: x * 0.3, condition, schedule, **options)
    assert [report[:2] for report in seen] == [(step, 12) for step in range(1, 13)]
    assert max(report[2].abs().max() for report in seen) == 1
    assert result.abs().max() <= 1
    assert torch.equal(result, seen[-1][2])


@variants
def test_progress_can_cancel(method, eta):
    class Cancelled(Exception):
        pass

    def cancel(step, steps, x0):
        if step == 3:
            raise Cancelled

    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 2, 2, 2)
    denoiser = Gaussian(schedule, 0.5)
    with pytest.raises(Cancelled):
        draw(denoiser, condition, schedule, method=method, eta=eta, prediction="x0", progress=cancel)
    assert len(denoiser.asked) == 3


@variants
def test_an_error_of_the_predicted_noise_is_survived(method, eta):
    """alpha_bar of 3.9e-8 turns an error of 1e-3 into one of 5 in the first x0; what is left is a small shift."""
    schedule = make_schedule("cosine", 250)
    condition = torch.zeros(1, 1, 8, 8, 8)

    def drawn(error, clip):
        first = []
        options = {"method": method, "eta": eta, "clip": clip, "progress": lambda step, steps, x0: first.append(x0)}
        return draw(Gaussian(schedule, 0.3, "noise", error), condition, schedule, **options), first[0]

    (wrong, first), (right, _) = drawn(1e-3, True), drawn(0.0, True)
    assert first.abs().max() == 1
    assert (wrong - right).abs().max() < 0.05
    # Without the clip, the error of the first x0 is all there.
    assert drawn(1e-3, False)[1].abs().max() > 4.5


@variants
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_nothing_in_the_loop_asks_the_device_for_a_value(method, eta, prediction):
    """Tensors on "meta" have no values: reading one, or copying one to the host, raises. And all is on one device."""
    condition = torch.empty(2, 3, 4, 4, 4, device="meta")
    options = {"method": method, "eta": eta, "steps": 5, "prediction": prediction, "generator": [seeded(1), seeded(2)]}
    result = draw(
        lambda x, t, condition: x + t.view(-1, 1, 1, 1, 1), condition, make_schedule("cosine", 250), **options
    )
    assert result.device.type == "meta" and result.shape == condition.shape


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"method": "euler"}, f'"euler" is not a sampler: use one of {", ".join(METHODS)}'),
        ({"steps": 0}, "the number of steps is 1 to 30 for this model, not 0"),
        ({"steps": -3}, "not -3"),
        ({"steps": 31}, "not 31"),
        ({"prediction": "score"}, '"score" is not a prediction type'),
        ({"method": "ddim", "eta": 1.5}, "eta is a number from 0 to 1, not 1.5"),
        ({"method": "ddim", "eta": math.nan}, "not nan"),
        ({"method": "ddpm", "eta": 0.5}, 'leave it at 0 for "ddpm"'),
        ({"method": "dpm-solver++", "eta": 0.5}, 'leave it at 0 for "dpm-solver++"'),
        ({"shape": (3, 1, 2, 3, 4)}, "does not fit a condition"),
        ({"shape": (2, 1, 4, 3, 2)}, "does not fit a condition"),
        ({"shape": (2, 1, 2, 3)}, "does not fit a condition"),
        ({"condition": torch.zeros(2, 2, 3, 4), "shape": (2, 1, 3, 4)}, "does not fit a condition"),
        ({"generator": [seeded()]}, "1 generators do not fit a batch of 2"),
        ({"generator": [seeded()] * 3}, "3 generators do not fit a batch of 2"),
        ({"generator": []}, "0 generators do not fit a batch of 2"),
    ),
)
def test_mistakes_are_answered_before_anything_is_drawn(arguments, message):
    def denoiser(x, t, condition):
        raise AssertionError("nothing may be drawn")

    given_arguments = {"condition": torch.zeros(2, 3, 2, 3, 4), "shape": (2, 1, 2, 3, 4), "steps": 10, **arguments}
    with pytest.raises(MedDPMError) as caught:
        sample(denoiser, schedule=make_schedule("cosine", 30), **given_arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_output_of_another_shape_is_not_broadcast():
    condition = torch.zeros(1, 3, 2, 3, 4)
    with pytest.raises(MedDPMError, match="returns an array of shape"):
        sample(lambda x, t, condition: x[:, :1], condition, make_schedule("cosine", 30), shape=(1, 4, 2, 3, 4))
