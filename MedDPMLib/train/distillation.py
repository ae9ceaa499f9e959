"""What does a student learn in order to take several steps of its teacher in one?

Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512, algorithm 2), for any number of steps at once: from
x_t the teacher goes r deterministic steps (DDIM) to x_s, and the student's x0 is to be the one from which a single step
of its own would end there,

    x0 = (x_s - sigma_s / sigma_t x_t) / (signal_s - sigma_s / sigma_t signal_t).
"""

from __future__ import annotations

import torch
from torch import Tensor

from MedDPMLib.diffusion.samplers import plan_steps
from MedDPMLib.diffusion.schedule import NoiseSchedule
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import Card
from MedDPMLib.models.model import load_model
from MedDPMLib.networks.optimized import optimize
from MedDPMLib.recipes.recipe import Recipe, generator_card


class Teacher:
    """The teacher of a student by ``recipe``, on ``device`` in ``dtype``; ``schedule`` is the recipe's, there.

    Raises :class:`MedDPMError` for a model that makes something else than the recipe's.
    """

    def __init__(self, recipe: Recipe, schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype) -> None:
        settings = recipe.distillation
        assert settings is not None, "only a student has a teacher"
        model = load_model(settings.teacher)
        _check_same(model.card, generator_card(recipe))
        #: For the run's history.
        self.identity = {"model": model.card.name, "hash": model.hash}
        self.prediction, self.schedule, self.dtype = model.card.prediction, schedule, dtype
        self.network = optimize(model.network, device, dtype)
        steps, own = (
            [evaluation for step in plan_steps(schedule, "ddim", count) for evaluation in step]
            for count in (settings.teacher_steps, settings.steps)
        )
        #: The teacher's timesteps, (N,).
        self.grid = torch.tensor([step.t for step in steps], device=device)
        #: What becomes of x and x0 in each step of the teacher (N, 2), and in each of the student's.
        self.weights, self.own_weights = (
            torch.tensor([(step.x, step.x0) for step in plan], device=device) for plan in (steps, own)
        )
        #: How many steps of the teacher are one of the student's.
        self.stride = settings.teacher_steps // settings.steps

    @torch.no_grad()
    def x0(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """What the student is to answer, float32 (B, C, D, H, W); ``t`` (B,) are timesteps of the student's."""
        share = self.network.encode_condition(condition if self.network.exact_condition else condition.to(self.dtype))
        start = (self.grid[None] == t[:, None]).int().argmax(dim=1)
        x = x_t
        for at in range(self.stride):
            now = self.grid[start + at]
            predicted = self.network.denoise(x.to(self.dtype), now, share)
            x0 = self.schedule.x0_from(predicted, x, now, self.prediction).clamp(-1, 1)
            of_x, of_x0 = _for_images(self.weights[start + at])
            x = of_x * x + of_x0 * x0
        of_x, of_x0 = _for_images(self.own_weights[start // self.stride])
        return (x - of_x * x_t) / of_x0


def _for_images(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of ``weights`` (B, 2), each shaped (B, 1, 1, 1, 1)."""
    of_x, of_x0 = weights.unbind(dim=1)
    return of_x.view(-1, 1, 1, 1, 1), of_x0.view(-1, 1, 1, 1, 1)


def _check_same(teacher: Card, student: Card) -> None:
    for what in (
        "condition_scheme",
        "modalities",
        "mask_encoding",
        "positions",
        "schedule",
        "constants",
        "axes",
        "image_range",
    ):
        if getattr(teacher, what) != getattr(student, what):
            raise MedDPMError(
                f'the teacher {teacher.name} has another "{what}" than the recipe {student.name}: they have to agree'
            )
    if student.label_dropout and not teacher.label_dropout:
        raise MedDPMError(f"the teacher {teacher.name} was never trained without labels: set label_dropout to 0")
