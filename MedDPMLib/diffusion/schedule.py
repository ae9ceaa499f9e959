"""How much noise is in the image at step t, and how image, noise and prediction follow from each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from MedDPMLib.diffusion.names import MAX_TIMESTEPS, PREDICTIONS, SCHEDULES
from MedDPMLib.errors import MedDPMError
from MedDPMLib.validation import quoted

_MAX_BETA = 0.999


def _cosine(timesteps: int) -> Tensor:
    """Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17, with s = 0.008."""
    s = 0.008
    time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    return _betas_of(torch.cos((time + s) / (1 + s) * math.pi / 2) ** 2)


def _sigmoid(timesteps: int) -> Tensor:
    """Jabri, Fleet and Chen 2022, arXiv 2212.11972; Chen 2023, arXiv 2301.10972: from -3 to 3, temperature 1."""
    curve = torch.sigmoid(torch.linspace(-3, 3, timesteps + 1, dtype=torch.float64))
    return _betas_of((curve[-1] - curve) / (curve[-1] - curve[0]))


def _linear(timesteps: int) -> Tensor:
    """Ho, Jain and Abbeel 2020, arXiv 2006.11239, section 4: betas from 1e-4 to 0.02 for 1000 timesteps."""
    first, last = _scaled_ends(timesteps)
    return torch.linspace(first, last, timesteps, dtype=torch.float64)


def _exponential(timesteps: int) -> Tensor:
    """The ends of the linear schedule with a constant ratio between neighbors.

    Gentler than the others: at the last timestep alpha_bar is still about 0.02.
    """
    first, last = _scaled_ends(timesteps)
    return torch.logspace(math.log10(first), math.log10(last), timesteps, dtype=torch.float64)


def _scaled_ends(timesteps: int) -> tuple[float, float]:
    # Fewer timesteps have to add as much noise as the thousand that the published ends belong to.
    return 1e-4 * 1000 / timesteps, 0.02 * 1000 / timesteps


def _betas_of(alpha_bar: Tensor) -> Tensor:
    """The betas (T,) of alpha_bar at the T + 1 times 0, 1/T, ..., 1."""
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


_BETAS = dict(zip(SCHEDULES, (_cosine, _linear, _sigmoid, _exponential), strict=True))


def posterior_coefficients(alpha_bar: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of x0 and of x_t in the mean of q(x_previous | x_t, x0), and its variance.

    Ho et al. 2020, equations 6 and 7, for any two noise levels: ``alpha_bar`` of x_t and the larger ``previous``
    of the less noisy image. Float64 tensors of one shape; 1 stands for the clean image.
    """
    alpha = alpha_bar / previous
    weight_x0 = previous.sqrt() * (1 - alpha) / (1 - alpha_bar)
    weight_x = alpha.sqrt() * (1 - previous) / (1 - alpha_bar)
    variance = (1 - alpha) * (1 - previous) / (1 - alpha_bar)
    return weight_x0, weight_x, variance


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise at each of the timesteps 0 (almost clean) to T - 1 (almost noise); made by :func:`make_schedule`.

    x_t = sqrt(alpha_bar[t]) x0 + sqrt(1 - alpha_bar[t]) noise, alpha_bar being the cumulative product of 1 - beta.

    Everything is computed in float64 and rounded to float32 once; the methods return float32, whatever they are
    given. Images are (B, ...), ``t`` is (B,) of integers from 0 to T - 1. The tables are on the CPU; on another
    device use :meth:`to` once, so that a loop does not copy them at every step.
    """

    name: str
    timesteps: int
    device: torch.device = field(default=torch.device("cpu"), compare=False)
    #: (T,) float32 on ``device``: the variance of the noise that each timestep adds.
    betas: Tensor = field(init=False, repr=False, compare=False)
    #: (T,) float32 on ``device``: how much of the image's variance is left.
    alpha_bar: Tensor = field(init=False, repr=False, compare=False)
    #: (T,) float32 on ``device``: the factors of image and noise in x_t.
    _signal: Tensor = field(init=False, repr=False, compare=False)
    _sigma: Tensor = field(init=False, repr=False, compare=False)
    #: ``alpha_bar`` in float64, always on the CPU: for coefficients that are computed before a loop.
    exact_alpha_bar: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A schedule made while generating must still serve in training, so no inference tensors.
        with torch.inference_mode(False):
            betas = _BETAS[self.name](self.timesteps).clamp(max=_MAX_BETA)
            alpha_bar = torch.cumprod(1 - betas, dim=0)
            tables = {
                "betas": betas,
                "alpha_bar": alpha_bar,
                "_signal": alpha_bar.sqrt(),
                "_sigma": (1 - alpha_bar).sqrt(),
            }
            for name, table in tables.items():
                object.__setattr__(self, name, table.float().to(self.device))
            object.__setattr__(self, "exact_alpha_bar", alpha_bar)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule with its tables on ``device``."""
        return replace(self, device=torch.device(device))

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t: the clean image ``x0`` (B, ...) with ``noise`` of the same shape, at timestep ``t`` (B,)."""
        signal, sigma = self._levels(t, x0)
        return signal * x0.float() + sigma * noise.float()

    def x0_from(self, predicted: Tensor, x_t: Tensor, t: Tensor, prediction: str) -> Tensor:
        """The clean image that a network's output ``predicted`` implies. Not clipped.

        From a noise prediction the error grows by sqrt(1 / alpha_bar - 1): 5073-fold at the last timestep of the
        cosine schedule of 250. Hence float32 here, and a clip afterwards.
        """
        check_prediction(prediction)
        predicted = predicted.float()
        if prediction == "x0":
            return predicted
        signal, sigma = self._levels(t, x_t)
        if prediction == "noise":
            return (x_t.float() - sigma * predicted) / signal
        return signal * x_t.float() - sigma * predicted

    def noise_from(self, predicted: Tensor, x_t: Tensor, t: Tensor, prediction: str) -> Tensor:
        """The noise that a network's output ``predicted`` implies."""
        check_prediction(prediction)
        predicted = predicted.float()
        if prediction == "noise":
            return predicted
        signal, sigma = self._levels(t, x_t)
        if prediction == "x0":
            return (x_t.float() - signal * predicted) / sigma
        return signal * predicted + sigma * x_t.float()

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return _at(self._signal, t, like), _at(self._sigma, t, like)


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """The entries of ``table`` at ``t`` (B,), shaped (B, 1, ...) to multiply ``like`` (B, ...)."""
    return table.to(like.device)[t.to(like.device).long()].reshape(-1, *[1] * (like.ndim - 1))


def check_prediction(prediction: str) -> None:
    """Raises :class:`MedDPMError` unless ``prediction`` is one of :data:`PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise MedDPMError(f"{quoted(prediction)} is not a prediction type: use one of {', '.join(PREDICTIONS)}")


def schedule_names() -> tuple[str, ...]:
    """The schedules that :func:`make_schedule` knows."""
    return tuple(_BETAS)


def make_schedule(name: str, timesteps: int = 250) -> NoiseSchedule:
    """The noise schedule called ``name`` (one of :func:`schedule_names`) with T = ``timesteps``, on the CPU.

    - "cosine": Nichol and Dhariwal 2021, s = 0.008; that of the published Med-DDPM networks (T = 250).
    - "linear": Ho et al. 2020, betas from 1e-4 to 0.02 times 1000 / T.
    - "sigmoid": Jabri et al. 2022 and Chen 2023, from -3 to 3, temperature 1.
    - "exponential": the ends of "linear", geometric in between.

    No beta exceeds 0.999. Raises :class:`MedDPMError` for an unknown name or fewer than 1 or more than
    :data:`MAX_TIMESTEPS` timesteps.
    """
    if name not in _BETAS:
        raise MedDPMError(f"{quoted(name)} is not a noise schedule: use one of {', '.join(schedule_names())}")
    if not 1 <= timesteps <= MAX_TIMESTEPS:
        raise MedDPMError(f"a noise schedule has 1 to {MAX_TIMESTEPS} timesteps, not {timesteps}")
    return NoiseSchedule(name, timesteps)
