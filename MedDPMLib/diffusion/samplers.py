"""How noise becomes an image, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from MedDPMLib.diffusion.names import METHODS
from MedDPMLib.diffusion.schedule import NoiseSchedule, check_prediction, posterior_coefficients
from MedDPMLib.errors import MedDPMError
from MedDPMLib.validation import quoted

#: (x (B, C, D, H, W) float32, t (B,) int64, condition (B, K, D, H, W)) -> prediction (B, C, D, H, W)
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def timestep_grid(timesteps: int, steps: int) -> list[int]:
    """The ``steps`` timesteps at which a network trained on ``timesteps`` = T is asked, from noise to image.

    "Trailing" spacing (Lin et al. 2023, arXiv 2305.08891, table 2): from T - 1 downwards in equal strides of
    T / steps, rounded. It always starts at T - 1, because sampling starts from pure noise and T - 1 is the noise
    level at which the network was trained on it; a grid that starts lower would tell it that there is
    an image in the noise. The entries are timesteps of the trained schedule, not of a shortened one of ``steps``
    timesteps: the network knows no others. From the last entry the sampler goes straight to the clean image.
    """
    if not 1 <= steps <= timesteps:
        raise MedDPMError(f"the number of steps is 1 to {timesteps} for this model, not {steps}")
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


class Evaluation(NamedTuple):
    """The denoiser is asked once, at ``t``, and its estimate of the clean image is x0: x becomes

    ``x`` x + ``x0`` x0 + ``change`` (x0 - x0 of the evaluation before) + ``noise`` times fresh noise.

    None draws no noise; 0 draws it all the same, so that the generator's state depends on the number of steps alone.
    """

    t: int
    x: float
    x0: float
    change: float = 0.0
    noise: float | None = None


#: What happens from one timestep of the grid to the next: the evaluations of the denoiser, in order.
Step = tuple[Evaluation, ...]


def plan_steps(schedule: NoiseSchedule, method: str, steps: int) -> list[Step]:
    """What :func:`sample` does at each of its ``steps``, from noise to image, by ``method`` (one of :data:`METHODS`).

    Every method is linear in x, x0 and noise; its coefficients are computed here, on the host, in float64.
    """
    return _PLANS[method](schedule, steps)


def _levels(schedule: NoiseSchedule, steps: int) -> tuple[list[int], Tensor, Tensor]:
    """The grid, alpha_bar (steps,) at its timesteps, and at those that follow: 1, the clean image, after the last."""
    grid = timestep_grid(schedule.timesteps, steps)
    alpha_bar = schedule.exact_alpha_bar[grid]
    return grid, alpha_bar, torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])


def _first_order(alpha_bar: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of x and x0 in the deterministic step of DDIM, with which every method but ancestral sampling begins.

    The noise in x is what x0 leaves of it, (x - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar): so it is always that of the
    clipped x0, never the network's own.
    """
    weight_x = ((1 - following) / (1 - alpha_bar)).clamp(min=0).sqrt()
    return weight_x, following.sqrt() - weight_x * alpha_bar.sqrt()


def _ddpm(schedule: NoiseSchedule, steps: int) -> list[Step]:
    grid, alpha_bar, following = _levels(schedule, steps)
    weight_x0, weight_x, variance = posterior_coefficients(alpha_bar, following)
    rows = zip(grid, weight_x.tolist(), weight_x0.tolist(), variance.sqrt().tolist(), strict=True)
    return [(Evaluation(t, x, x0, noise=noise),) for t, x, x0, noise in rows]


def _ddim(schedule: NoiseSchedule, steps: int) -> list[Step]:
    grid, alpha_bar, following = _levels(schedule, steps)
    weight_x, weight_x0 = _first_order(alpha_bar, following)
    return [(Evaluation(*row),) for row in zip(grid, weight_x.tolist(), weight_x0.tolist(), strict=True)]


def _dpm_solver(schedule: NoiseSchedule, steps: int) -> list[Step]:
    grid, alpha_bar, following = _levels(schedule, steps)
    weight_x, weight_x0 = _first_order(alpha_bar, following)
    # Half the log signal-to-noise ratio: the time in which the solver extrapolates x0. The first step has no
    # history, and the last, of infinite length in that time, is first order.
    width = torch.diff(torch.logit(alpha_bar) / 2)
    change = torch.zeros_like(alpha_bar)
    change[1:-1] = weight_x0[1:-1] * width[1:] / (2 * width[:-1])
    rows = zip(grid, weight_x.tolist(), weight_x0.tolist(), change.tolist(), strict=True)
    return [(Evaluation(*row),) for row in rows]


def _heun(schedule: NoiseSchedule, steps: int) -> list[Step]:
    """Each step is taken a second time, with the mean of the x0 at its two ends. But for the last: where there is no
    noise, the network has nothing to answer.

    The time is the solver's above. In that of the noise's standard deviation, which first falls from 5073 to a few,
    the mean of two slopes would be far from the one between.
    """
    grid, alpha_bar, following = _levels(schedule, steps)
    weight_x, weight_x0 = _first_order(alpha_bar, following)
    first = [Evaluation(*row) for row in zip(grid, weight_x.tolist(), weight_x0.tolist(), strict=True)]
    second = [Evaluation(t, 1.0, 0.0, half) for t, half in zip(grid[1:], (weight_x0[:-1] / 2).tolist(), strict=True)]
    return [*zip(first[:-1], second, strict=True), (first[-1],)]


#: The plan of each of :data:`METHODS`, from a schedule and the number of steps.
_PLANS: dict[str, Callable[[NoiseSchedule, int], list[Step]]] = {
    "dpm-solver++": _dpm_solver,
    "heun": _heun,
    "ddim": _ddim,
    "ddpm": _ddpm,
}


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    condition: Tensor,
    schedule: NoiseSchedule,
    *,
    shape: Sequence[int],
    method: str = "dpm-solver++",
    steps: int = 20,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    prediction: str = "noise",
    progress: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Draws images of ``shape`` (B, C, D, H, W) for ``condition`` (B, K, D, H, W); float32, on condition's device.

    ``denoiser(x, t, condition)`` predicts what ``prediction`` says ("noise", "x0" or "v") from x (B, C, D, H, W)
    float32 and t (B,) int64, a timestep of ``schedule``; its result may have any floating type. It is asked at
    the ``steps`` timesteps of :func:`timestep_grid`, once at each, or as often as ``method`` (one of :data:`METHODS`)
    says. Every estimate of x0 is clipped to [-1, 1] before it is used, and the result lies in [-1, 1].

    Noise: "ddpm" draws x_T first and then one tensor of ``shape`` for each step, the last of which is multiplied
    by zero. The others draw x_T only. ``generator`` is the source: one generator, or one for each image of the
    batch, which then draws ``shape[1:]`` in the same order, so that an image's noise does not depend on the batch it
    is in. Noise is drawn on the generator's device; None is torch's default generator on condition's device.

    ``progress(step, steps, x0)`` is called after each step, with step from 1 to ``steps`` and the current (clipped)
    estimate x0 (B, C, D, H, W), which it must not change; what it raises ends the sampling.

    Raises :class:`MedDPMError` for an unknown method or prediction, a number of steps outside 1 to T, a shape that does
    not fit the condition, and a wrong number of generators. Nothing in the loop waits for a CUDA device, unless
    ``denoiser`` or ``progress`` do.
    """
    _check(condition, tuple(shape), method, generator, prediction)
    plan = plan_steps(schedule, method, steps)
    schedule = schedule.to(condition.device)
    x = _noise(shape, generator, condition.device)
    before: Tensor | None = None
    for number, step in enumerate(plan, start=1):
        for evaluation in step:
            t = torch.full((shape[0],), evaluation.t, dtype=torch.int64, device=condition.device)
            predicted = denoiser(x, t, condition)
            if predicted.shape != x.shape:
                raise MedDPMError(
                    f"the denoiser returns an array of shape {tuple(predicted.shape)} for an image of shape "
                    f"{tuple(shape)}: ask for the shape that it was made for"
                )
            x0 = schedule.x0_from(predicted, x, t, prediction)
            del predicted  # it would lie in memory while the denoiser works
            x0 = x0.clamp(-1, 1)
            x = evaluation.x * x + evaluation.x0 * x0
            if evaluation.change:
                assert before is not None, "a plan's first evaluation changes nothing"
                x += evaluation.change * (x0 - before)
            if evaluation.noise is not None:
                x += evaluation.noise * _noise(shape, generator, condition.device)
            before = x0
        if progress is not None:
            progress(number, steps, x0)
    return x


def _noise(
    shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator] | None, device: torch.device
) -> Tensor:
    """Standard normal noise of ``shape``, float32, on ``device``."""
    if generator is None:
        return torch.randn(*shape, device=device)
    if isinstance(generator, torch.Generator):
        return _drawn(shape, generator, device)
    return torch.stack([_drawn(shape[1:], one, device) for one in generator])


def _drawn(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    # From pinned memory a GPU fetches it when it gets there, and the CPU does not wait.
    pinned = generator.device.type == "cpu" and device.type == "cuda"
    drawn = torch.randn(*shape, generator=generator, device=generator.device, pin_memory=pinned)
    return drawn.to(device, non_blocking=pinned)


def _check(
    condition: Tensor,
    shape: tuple[int, ...],
    method: str,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    prediction: str,
) -> None:
    if method not in METHODS:
        raise MedDPMError(f"{quoted(method)} is not a sampler: use one of {', '.join(METHODS)}")
    check_prediction(prediction)
    if len(shape) != 5 or condition.ndim != 5 or shape[0] != condition.shape[0] or shape[2:] != condition.shape[2:]:
        raise MedDPMError(
            f"an image of shape {shape} does not fit a condition of shape {tuple(condition.shape)}: "
            "both are (batch, channels, depth, height, width), and only the channels may differ"
        )
    one_for_all = generator is None or isinstance(generator, torch.Generator)
    if not one_for_all and len(generator) != shape[0]:
        raise MedDPMError(
            f"{len(generator)} generators do not fit a batch of {shape[0]}: give one, or one for each image"
        )
