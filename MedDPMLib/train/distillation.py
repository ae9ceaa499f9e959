"""What does a student learn that is to take several of its teacher's steps in one?

Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512, algorithm 2), for any number of steps at once: from
x_t the teacher goes r deterministic steps (DDIM) to x_s, and the student's x0 is to be the one from which a single step
of its own would end there,

    x0 = (x_s - sigma_s / sigma_t x_t) / (signal_s - sigma_s / sigma_t signal_t).
"""

from __future__ import annotations

import torch
from torch import Tensor

from MedDPMLib.card import Card
from MedDPMLib.errors import MedDPMError
from MedDPMLib.model import load_model
from MedDPMLib.networks.denoiser import Economy
from MedDPMLib.recipe import Recipe, recipe_card
from MedDPMLib.samplers import timestep_grid
from MedDPMLib.schedule import NoiseSchedule


class Teacher:
    """The model that ``recipe.distillation`` names, on ``device`` in ``dtype``; ``schedule`` is the recipe's, there.

    Raises :class:`MedDPMError` for a model that makes something else than the recipe's.
    """

    def __init__(self, recipe: Recipe, schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype) -> None:
        settings = recipe.distillation
        model = load_model(settings.teacher)
        _check_same(model.card, recipe_card(recipe))
        #: For the run's story.
        self.identity = {"model": model.card.name, "hash": model.hash}
        self.prediction, self.schedule, self.dtype = model.card.prediction, schedule, dtype
        self.network = model.network.for_inference(device, dtype, Economy.FAST)
        grid = timestep_grid(schedule.timesteps, settings.teacher_steps)
        alpha_bar = schedule.exact_alpha_bar[grid]
        #: (N,) the teacher's timesteps, and (N + 1,) what is left of the image's variance there and in the clean image.
        self.grid = torch.tensor(grid, device=device)
        self.alpha_bar = torch.cat([alpha_bar, alpha_bar.new_ones(1)]).float().to(device)
        #: How many of them are one step of the student.
        self.stride = settings.teacher_steps // settings.steps

    @torch.no_grad()
    def x0(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """What the student is to answer, float32 (B, C, D, H, W); ``t`` (B,) are timesteps of the student's."""
        share = self.network.encode_condition(condition if self.network.exact_condition else condition.to(self.dtype))
        start = (self.grid[None] == t[:, None]).int().argmax(dim=1)
        x = x_t
        for place in range(self.stride):
            at = start + place
            predicted = self.network.denoise(x.to(self.dtype), self.grid[at], share)
            x0 = self.schedule.x0_from(predicted, x, self.grid[at], self.prediction).clamp(-1, 1)
            scale = self._noise_left(at, at + 1)
            x = scale * x + self._image_added(at, at + 1, scale) * x0
        end = start + self.stride
        scale = self._noise_left(start, end)
        return (x - scale * x_t) / self._image_added(start, end, scale)

    def _noise_left(self, here: Tensor, there: Tensor) -> Tensor:
        """sigma_there / sigma_here, (B, 1, 1, 1, 1), for places on the grid."""
        return ((1 - self.alpha_bar[there]) / (1 - self.alpha_bar[here])).sqrt().view(-1, 1, 1, 1, 1)

    def _image_added(self, here: Tensor, there: Tensor, noise_left: Tensor) -> Tensor:
        signal = self.alpha_bar.sqrt().view(-1, 1, 1, 1, 1)
        return signal[there] - noise_left * signal[here]


def _check_same(teacher: Card, student: Card) -> None:
    for what in ("condition_scheme", "modalities", "mask_encoding", "positions", "schedule"):
        if getattr(teacher, what) != getattr(student, what):
            raise MedDPMError(
                f'the teacher {teacher.name} has another "{what}" than the recipe {student.name}: they have to agree'
            )
    if student.label_dropout and not teacher.label_dropout:
        raise MedDPMError(
            f"the teacher {teacher.name} does not know what a brain without labels is: set label_dropout to 0"
        )
