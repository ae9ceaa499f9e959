"""What does a segmenter see in an iteration? As in all training here, the number of an example decides all about it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.data import Case, VariedCases
from MedDPMLib.experiment.mixing import mixed
from MedDPMLib.experiment.recipe import CLASSICAL, MIXING, ExperimentRecipe, SegmentationArm
from MedDPMLib.recipes.parts import Augmentation

#: A stream of random numbers of its own, beside those of MedDPMLib.data.
_MIXING = 19

_UNVARIED = Augmentation(
    flip=0, rotation=0, scaling=0, translation=0, elastic=0, elastic_points=2, gamma=0, bias=0, bias_points=2
)


class ArmExamples:
    """The examples of an ``arm`` by their number, out of its ``cases``."""

    def __init__(self, recipe: ExperimentRecipe, arm: SegmentationArm, cases: Sequence[Case], seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        self.methods = [name for name in MIXING if name in arm.augmentation]
        augmentation = recipe.augmentation if CLASSICAL in arm.augmentation else _UNVARIED
        patch = recipe.patch and tuple(reversed(recipe.patch))
        self.varied = VariedCases(cases, augmentation, tuple(reversed(recipe.size)), patch, recipe.label_scheme, seed)

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, D, H, W) in [-1, 1] and regions (B, R, D, H, W) in [0, 1] of ``iteration``, from 0."""
        size = self.recipe.budget.batch
        made = torch.stack([self._example(number) for number in range(iteration * size, (iteration + 1) * size)])
        return made[:, : len(self.recipe.modalities)], made[:, len(self.recipe.modalities) :]

    def _example(self, number: int) -> Tensor:
        own = self._joined(number)
        random = np.random.default_rng((self.seed, _MIXING, number))
        if not self.methods or random.uniform() >= self.recipe.mixing_probability:
            return own
        method = self.methods[int(random.integers(len(self.methods)))]
        second = self._joined(number + 1 + int(random.integers(len(self.varied))))
        count, alpha = len(self.recipe.regions), self.recipe.mixup_alpha
        return mixed(own, second, method, random, regions=count, alpha=alpha)

    def _joined(self, number: int) -> Tensor:
        sample = self.varied[number]
        return torch.cat([sample.image, regions_of(sample.labels, self.recipe).float()])


def whole_image(case: Case, recipe: ExperimentRecipe) -> Tensor:
    """All of ``case`` on the grid of the networks, as it is: (1, C, D, H, W)."""
    shape = tuple(reversed(recipe.size))
    return VariedCases([case], _UNVARIED, shape, None, recipe.label_scheme, 0)[0].image[None]


def regions_of(labels: Tensor, recipe: ExperimentRecipe) -> Tensor:
    """The regions (R, D, H, W), boolean, in the labels (D, H, W)."""
    return torch.stack([torch.isin(labels, torch.tensor(values)) for values in recipe.region_values.values()])
