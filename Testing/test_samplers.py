"""Samplers against closed forms, an independent implementation, and their own promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.diffusion.names import METHODS, PREDICTIONS
from MedDPMLib.diffusion.samplers import _PLANS, plan_steps, sample, timestep_grid
from MedDPMLib.diffusion.schedule import make_schedule, posterior_coefficients, schedule_names
from MedDPMLib.errors import MedDPMError

every_method = pytest.mark.parametrize("method", METHODS)

#: How often the denoiser is asked at each timestep but the last.
EVALUATIONS = {"dpm-solver++": 1, "heun": 2, "ddim": 1, "ddpm": 1}

#: Of data whose every estimate stays within [-1, 1]: the closed forms know no clip.
SPREAD = 0.2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Gaussian:
    """The optimal denoiser of data N(condition, spread^2), voxel by voxel. Remembers what it was asked."""

    def __init__(self, schedule, spread, prediction="x0", error=0.0):
        self.schedule, self.spread, self.prediction, self.error = schedule, spread, prediction, error
        self.asked, self.count = {}, 0

    def __call__(self, x, t, condition):
        self.asked[t[0].item()] = x.clone()  # of several times the last
        self.count += 1
        alpha_bar = self.schedule.exact_alpha_bar[t].view(-1, 1, 1, 1, 1)
        signal, x = alpha_bar.sqrt(), x.double()
        x0 = self.estimate(x, condition.double(), alpha_bar)
        if self.prediction == "x0":
            return x0.float()
        noise = (x - signal * x0) / (1 - alpha_bar).sqrt() + self.error
        return (noise if self.prediction == "noise" else signal * noise - (1 - alpha_bar).sqrt() * x0).float()

    def estimate(self, x, mean, alpha_bar):
        """Of the clean image."""
        gain = alpha_bar.sqrt() * self.spread**2 / self.variance(alpha_bar)
        return mean + gain * (x - alpha_bar.sqrt() * mean)

    def variance(self, alpha_bar):
        """Of x_t."""
        return alpha_bar * self.spread**2 + 1 - alpha_bar

    def flow(self, x_from, mean, t_from, t_to):
        """Closed-form solution of the probability-flow ODE from x at t_from to t_to.

        The flow keeps the standard score of each voxel: (x_t - sqrt(alpha_bar) mean) / standard deviation of x_t.
        """
        first = self.schedule.exact_alpha_bar[t_from]
        last = self.schedule.exact_alpha_bar[t_to]
        score = (x_from.double() - first.sqrt() * mean) / self.variance(first).sqrt()
        return last.sqrt() * mean + self.variance(last).sqrt() * score


def draw(denoiser, condition, schedule, *, generator=None, **options) -> torch.Tensor:
    """One channel for each of the condition's, from seed 0 unless set otherwise."""
    generator = seeded() if generator is None else generator
    return sample(denoiser, condition, schedule, shape=condition.shape, generator=generator, **options)


def means(*shape: int, width: float = 1.0) -> torch.Tensor:
    return width * (torch.rand(shape, generator=seeded(99)) - 0.5)


def inside(step, steps, x0):
    """For ``progress``: nothing was clipped."""
    assert x0.abs().max() < 1


# Closed forms


def error_halfway(method: str, steps: int) -> float:
    """Largest error of the sampler against the exact flow at half of the timesteps.

    Halfway, because the last step, straight to the clean image, is first order by design. With these timesteps
    every grid of a power of two steps passes there, and with this schedule the first step is a finite one.
    """
    schedule = make_schedule("exponential", 7680)
    condition = means(1, 1, 4, 4, 4, width=0.5)
    denoiser = Gaussian(schedule, SPREAD)
    draw(denoiser, condition, schedule, method=method, steps=steps, prediction="x0", progress=inside)
    exact = denoiser.flow(denoiser.asked[7679], condition, 7679, 3839)
    return (denoiser.asked[3839] - exact).abs().max().item()


# Of Heun's method fewer steps: with more its error is that of float32.
@pytest.mark.parametrize(("method", "order", "least"), (("ddim", 1, 32), ("dpm-solver++", 2, 32), ("heun", 2, 8)))
def test_order_of_convergence(method, order, least):
    errors = [error_halfway(method, steps) for steps in (least, 2 * least, 4 * least)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.08)


@pytest.mark.parametrize(("method", "tolerance"), (("ddim", 0.01), ("dpm-solver++", 0.001), ("heun", 0.001)))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_deterministic_samplers_follow_the_flow_to_the_image(method, tolerance, prediction):
    schedule = make_schedule("cosine", 1000)
    condition = means(2, 1, 4, 4, 4, width=0.5)
    denoiser = Gaussian(schedule, SPREAD, prediction)
    result = draw(denoiser, condition, schedule, method=method, steps=500, prediction=prediction, progress=inside)
    last = timestep_grid(1000, 500)[-1]  # from where every method goes straight to the estimate
    reached = denoiser.flow(denoiser.asked[999], condition, 999, last)
    exact = denoiser.estimate(reached, condition.double(), schedule.exact_alpha_bar[last])
    assert (result - exact).abs().max() < tolerance


def test_ancestral_sampling_draws_from_the_data():
    schedule = make_schedule("cosine", 1000)
    condition = means(2, 1, 32, 32, 32, width=0.5)
    options = {"method": "ddpm", "steps": 1000, "prediction": "x0", "progress": inside}
    drawn = (draw(Gaussian(schedule, SPREAD), condition, schedule, **options) - condition).flatten()
    # Four standard errors of the mean and of the standard deviation of so many voxels.
    count = drawn.numel()
    assert abs(drawn.mean().item()) < 4 * SPREAD / math.sqrt(count)
    error = 4 * SPREAD / math.sqrt(2 * count)
    # The posterior's variance is the lower bound of the reverse step's: the spread comes out O(1 / T) small.
    assert SPREAD * 0.99 - error < drawn.std().item() < SPREAD + error
    # Independent of its voxel's mean, and of its neighbor.
    centered = (condition - condition.mean()).flatten()
    assert abs((drawn * centered).mean() / drawn.std() / centered.std()) < 4 / math.sqrt(count)
    assert abs((drawn[1:] * drawn[:-1]).mean() / drawn.var()) < 4 / math.sqrt(count)


@given(
    name=st.sampled_from(schedule_names()),
    timesteps=st.integers(1, 60),
    share=st.floats(0, 1),
    method=st.sampled_from(METHODS),
    prediction=st.sampled_from(PREDICTIONS),
)
@settings(deadline=None, max_examples=80)
def test_a_denoiser_that_knows_the_image_gives_it(name, timesteps, share, method, prediction):
    """Any schedule, any number of steps: data of no spread come out exactly, to float32 rounding."""
    schedule = make_schedule(name, timesteps)
    steps = 1 + round(share * (timesteps - 1))
    condition = means(2, 1, 2, 3, 4)
    options = {"method": method, "steps": steps, "prediction": prediction}
    result = draw(Gaussian(schedule, 0.0, prediction), condition, schedule, **options)
    last = schedule.exact_alpha_bar[timestep_grid(timesteps, steps)[-1]].item()
    growth = math.sqrt(1 / last - 1) if prediction == "noise" else 0.0
    torch.testing.assert_close(result, condition, rtol=0, atol=2e-6 * (1 + growth))


@every_method
def test_prediction_types_are_equivalent(method):
    schedule = make_schedule("cosine", 250)
    condition = means(2, 1, 4, 4, 4)
    options = {"method": method, "steps": 25}
    results = [
        draw(Gaussian(schedule, 0.8, prediction), condition, schedule, prediction=prediction, **options)
        for prediction in PREDICTIONS
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-4)


# Against an independent implementation


def independent(method, prediction, schedule, steps):
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
        scheduler = DDPMScheduler(**common, variance_type="fixed_small", clip_sample=True)
    elif method == "ddim":
        scheduler = DDIMScheduler(**common, clip_sample=True, set_alpha_to_one=True)
        arguments = {"use_clipped_model_output": True}
    else:
        # Thresholding at a largest value of 1 is clipping to [-1, 1].
        scheduler = DPMSolverMultistepScheduler(**common, thresholding=True, sample_max_value=1.0)
    # Theirs is a cumulative product in float32, of which 1 - alpha_bar keeps four digits at the first timesteps.
    scheduler.alphas_cumprod = schedule.exact_alpha_bar.clone()
    scheduler.set_timesteps(steps)
    return scheduler, arguments


@pytest.mark.parametrize("method", ("dpm-solver++", "ddim", "ddpm"))
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", (10, 25, 250))
def test_samplers_agree_with_an_independent_implementation(method, prediction, steps):
    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 4, 4, 4)
    denoiser = Gaussian(schedule, 0.8, prediction)
    largest = []
    options = {"method": method, "steps": steps, "prediction": prediction}
    ours = draw(
        denoiser, condition, schedule, progress=lambda step, steps, x0: largest.append(x0.abs().max().item()), **options
    )
    assert max(largest) == 1, "the clip has to matter"

    scheduler, arguments = independent(method, prediction, schedule, steps)
    generator = seeded()
    x = torch.randn(condition.shape, generator=generator)
    for t in scheduler.timesteps:
        arguments |= {"generator": generator} if method in ("ddim", "ddpm") else {}
        predicted = denoiser(x.float(), t.reshape(1), condition)
        x = scheduler.step(predicted, t, x, **arguments).prev_sample
    torch.testing.assert_close(ours, x.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", (10, 25, 250))
def test_heun_agrees_with_the_parts_of_an_independent_solver(prediction, steps):
    """diffusers' single-step solver chooses its middle itself: here it is given the end of the step for it."""
    from diffusers import DPMSolverSinglestepScheduler

    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 4, 4, 4)
    denoiser = Gaussian(schedule, 0.8, prediction)
    ours = draw(denoiser, condition, schedule, method="heun", steps=steps, prediction=prediction)

    kind = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}[prediction]
    solver = DPMSolverSinglestepScheduler(250, prediction_type=kind, thresholding=True, sample_max_value=1.0)
    grid = timestep_grid(250, steps)
    sigmas = [*(1 / schedule.exact_alpha_bar[grid] - 1).sqrt(), torch.tensor(0.0, dtype=torch.float64)]
    x = torch.randn(condition.shape, generator=seeded()).double()

    def estimate(index, x, t):
        solver._step_index = index
        return solver.convert_model_output(denoiser(x.float(), torch.tensor([t]), condition).double(), sample=x)

    for start, end, t, t_end in zip(sigmas, sigmas[1:], grid, [*grid[1:], None], strict=False):
        solver.sigmas = torch.stack([start, end, end])
        x0 = estimate(0, x, t)
        reached = solver.dpm_solver_first_order_update(x0, sample=x)
        if t_end is not None:
            x0_end = estimate(1, reached, t_end)
            reached = solver.singlestep_dpm_solver_second_order_update([x0, x0_end], sample=x)
        x = reached
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


def test_every_method_that_is_named_has_a_plan():
    assert tuple(_PLANS) == METHODS


@every_method
@pytest.mark.parametrize("steps", (1, 2, 5))
def test_the_denoiser_is_asked_as_often_as_the_plan_says(method, steps):
    schedule = make_schedule("cosine", 250)
    denoiser, reports = Gaussian(schedule, 0.5), []
    draw(
        denoiser, means(1, 1, 2, 2, 2), schedule, method=method, steps=steps, prediction="x0",
        progress=lambda *report: reports.append((*report[:2], denoiser.count)),
    )  # fmt: skip
    each = EVALUATIONS[method]
    counts = [each * step for step in range(1, steps)] + [each * (steps - 1) + 1]
    assert reports == [(step, steps, count) for step, count in enumerate(counts, start=1)]
    assert sum(map(len, plan_steps(schedule, method, steps))) == counts[-1]


@every_method
def test_the_denoiser_is_asked_at_the_timesteps_it_was_trained_on(method):
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

    result = sample(denoiser, condition, schedule, shape=(2, 4, 2, 3, 4), method=method, steps=20)
    first, *others = timestep_grid(250, 20)
    assert asked == [[t, t] for t in [first, *(t for t in others for _ in range(EVALUATIONS[method]))]]
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
        alpha_bar, previous = schedule.exact_alpha_bar[i], schedule.exact_alpha_bar[i - 1] if i else torch.tensor(1.0)
        of_x0, of_x, variance = posterior_coefficients(alpha_bar, previous)
        x = of_x0.float() * x0 + of_x.float() * x + variance.sqrt().float() * torch.randn(shape, generator=generator)
    torch.testing.assert_close(result, x, rtol=0, atol=1e-5)
    assert torch.equal(ours.get_state(), generator.get_state())


@every_method
def test_number_of_draws(method):
    schedule = make_schedule("cosine", 30)
    condition = means(2, 1, 2, 3, 4)
    ours, counted = seeded(), seeded()
    draw(Gaussian(schedule, 0.5), condition, schedule, generator=ours, method=method, steps=6, prediction="x0")
    for _ in range(1 + (6 if method == "ddpm" else 0)):
        torch.randn(condition.shape, generator=counted)
    assert torch.equal(ours.get_state(), counted.get_state())


@every_method
def test_an_image_does_not_depend_on_its_batch(method):
    schedule = make_schedule("cosine", 250)
    condition = means(3, 1, 2, 3, 5)
    options = {"method": method, "steps": 9, "prediction": "x0"}

    def denoiser(x, t, condition):
        return 0.5 * x * condition + 0.1 * condition

    def chosen(images, generator):
        return draw(denoiser, condition[images], schedule, generator=generator, **options)

    batch = chosen([0, 1, 2], [seeded(7), seeded(8), seeded(9)])
    assert torch.equal(chosen([2, 0], [seeded(9), seeded(7)]), batch[[2, 0]])
    for i in range(3):
        assert torch.equal(chosen([i], [seeded(7 + i)]), batch[i : i + 1])
        assert torch.equal(chosen([i], seeded(7 + i)), batch[i : i + 1])


@every_method
def test_the_same_seed_gives_the_same_image(method):
    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 2, 3, 4)
    options = {"shape": condition.shape, "method": method, "steps": 9, "prediction": "x0"}

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


@every_method
def test_clip_holds_at_every_step_and_at_the_end(method):
    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 4, 4, 4)
    seen = []
    options = {"method": method, "steps": 12, "progress": lambda *report: seen.append(report)}
    result = draw(lambda x, t, condition: x * 0.3, condition, schedule, **options)
    assert [report[:2] for report in seen] == [(step, 12) for step in range(1, 13)]
    assert max(report[2].abs().max() for report in seen) == 1
    assert result.abs().max() <= 1
    assert torch.equal(result, seen[-1][2])


@every_method
def test_progress_can_cancel(method):
    class Cancelled(Exception):
        pass

    def cancel(step, steps, x0):
        if step == 3:
            raise Cancelled

    schedule = make_schedule("cosine", 250)
    condition = means(1, 1, 2, 2, 2)
    denoiser = Gaussian(schedule, 0.5)
    with pytest.raises(Cancelled):
        draw(denoiser, condition, schedule, method=method, prediction="x0", progress=cancel)
    assert denoiser.count == 3 * EVALUATIONS[method]


@every_method
def test_an_error_of_the_predicted_noise_is_survived(method):
    """alpha_bar of 3.9e-8 turns an error of 1e-3 into one of 5 in the first x0; what is left is a small shift."""
    schedule = make_schedule("cosine", 250)
    condition = torch.zeros(1, 1, 8, 8, 8)

    def drawn(error):
        first = []
        denoiser = Gaussian(schedule, 0.3, "noise", error)
        options = {"method": method, "progress": lambda step, steps, x0: first.append(x0)}
        result = draw(denoiser, condition, schedule, **options)
        x, t = denoiser.asked[249], torch.tensor([249])
        return result, first[0], schedule.x0_from(denoiser(x, t, condition), x, t, "noise")

    (wrong, first, implied), (right, _, _) = drawn(1e-3), drawn(0.0)
    assert implied.abs().max() > 4.5, "without the clip, the error is all there"
    assert first.abs().max() == 1 or method == "heun"  # whose estimate after the step is its second
    assert (wrong - right).abs().max() < 0.05


@every_method
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_nothing_in_the_loop_asks_the_device_for_a_value(method, prediction):
    """Tensors on "meta" have no values: reading one, or copying one to the host, raises. And all is on one device."""
    condition = torch.empty(2, 3, 4, 4, 4, device="meta")
    options = {"method": method, "steps": 5, "prediction": prediction, "generator": [seeded(1), seeded(2)]}
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
