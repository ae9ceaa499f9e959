"""What is the objective of the training? The loss of a batch.

    loss = mean over examples of  w(t) * sum(r * penalty(estimate - truth)) / sum(r)

``estimate`` is what the network's prediction implies for the recipe's ``loss_space`` (noise, x0 or v), whatever it
is that the network predicts. The three errors differ by a factor that depends on the noise alone, with
signal = sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar):

    error of the noise = -signal / sigma * error of x0,        error of v = -1 / sigma * error of x0

``r`` weights the voxels (background and tumor), ``w`` the timesteps: by the floor on sigma, and by min-SNR (Hang et
al. 2023, arXiv 2303.09556), which stands for min(SNR, gamma) times the squared error of x0 with
SNR = alpha_bar / (1 - alpha_bar); in the other spaces it is divided by the square of the factor above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from MedDPMLib.diffusion.schedule import NoiseSchedule
from MedDPMLib.recipes.recipe import Training

#: Where the Huber loss turns from the square to the absolute value: a twentieth of the intensities' range.
HUBER_DELTA = 0.1


class Objective:
    """The loss by ``settings`` for a network that predicts ``prediction``; ``schedule`` lies on the device."""

    def __init__(self, settings: Training, prediction: str, schedule: NoiseSchedule) -> None:
        self.settings = settings
        self.prediction = prediction
        self.schedule = schedule
        #: (T,) float32: how much an example at each timestep counts.
        self.timestep_weight = self._timestep_weight()

    def loss(self, predicted: Tensor, x0: Tensor, noise: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        """One number, float32.

        ``predicted``, ``x0`` and ``noise`` are (B, C, D, H, W), ``t`` (B,), ``weight`` (B, 1, D, H, W): how much an
        error counts at each voxel.
        """
        estimate, truth = self._in_loss_space(predicted.float(), x0, noise, t)
        dimensions = tuple(range(1, x0.ndim))
        error = (penalty(self.settings.loss, estimate, truth, HUBER_DELTA) * weight).mean(dimensions) / weight.mean(
            dimensions
        ).clamp(min=1e-6)
        return (error * self.timestep_weight[t]).mean()

    def _in_loss_space(self, predicted: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate and truth of what the loss compares."""
        space, prediction = self.settings.loss_space, self.prediction
        truth = {"x0": lambda: x0, "noise": lambda: noise, "v": lambda: self._velocity(x0, noise, t)}[space]()
        if space == prediction:
            return predicted, truth
        x_t = self.schedule.add_noise(x0, t, noise)
        estimated_x0 = self.schedule.x0_from(predicted, x_t, t, prediction)
        if space == "x0":
            return estimated_x0, truth
        estimated_noise = self.schedule.noise_from(predicted, x_t, t, prediction)
        return estimated_noise if space == "noise" else self._velocity(estimated_x0, estimated_noise, t), truth

    def _velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha_bar = self.schedule.alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0

    def _timestep_weight(self) -> Tensor:
        alpha_bar = self.schedule.exact_alpha_bar
        sigma = (1 - alpha_bar).sqrt()
        weight = 1 / sigma.clamp(min=self.settings.sigma_floor)
        if self.settings.min_snr:
            snr = alpha_bar / (1 - alpha_bar)
            # The square of the factor from the error of x0 to that of the loss's space.
            factor = {"x0": torch.ones_like(snr), "noise": snr, "v": snr + 1}[self.settings.loss_space]
            weight = weight * snr.clamp(max=self.settings.min_snr) / factor
        return weight.float().to(self.schedule.device)


def penalty(loss: str, estimate: Tensor, truth: Tensor, delta: float) -> Tensor:
    """By voxel, for one of the :data:`MedDPMLib.recipes.recipe.LOSSES`; ``delta`` is where the Huber loss turns."""
    if loss == "l1":
        return (estimate - truth).abs()
    if loss == "l2":
        return (estimate - truth).square()
    return torch.nn.functional.huber_loss(estimate, truth, reduction="none", delta=delta)


def learning_rate(settings: Training, iteration: int, iterations: int) -> float:
    """That of ``iteration``, counted from 0: a linear rise, then half a cosine down to the minimum rate, or the inverse
    square root of the iteration."""
    if iteration < settings.warm_up:
        return settings.learning_rate * (iteration + 1) / settings.warm_up
    if settings.inverse_sqrt_from:
        share = math.sqrt(settings.inverse_sqrt_from / max(iteration, settings.inverse_sqrt_from))
        return settings.learning_rate * max(share, settings.min_lr_ratio)
    done = (iteration - settings.warm_up) / max(1, iterations - settings.warm_up)
    low, high = settings.min_lr_ratio * settings.learning_rate, settings.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def ema_decay(settings: Training, iteration: int) -> float:
    """The moving average's decay after ``iteration`` iterations: 0 before its start, so that it is a copy, and short
    at first, so that what the first weights were is soon forgotten."""
    if iteration < settings.ema_start:
        return 0.0
    return min(settings.ema, (1 + iteration) / (10 + iteration))
