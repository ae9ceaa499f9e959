"""Which task is a recipe's?"""

from __future__ import annotations

from dataclasses import replace

import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks.denoiser import Network
from MedDPMLib.recipes.recipe import Recipe
from MedDPMLib.train.cascade_level import LevelTask
from MedDPMLib.train.stored_tables import CascadeTables
from MedDPMLib.train.task import Task, TimestepTask


def make_task(recipe: Recipe, device: torch.device, dtype: torch.dtype, tables: CascadeTables | None = None) -> Task:
    """What ``recipe`` lets a network learn, with fresh weights; ``tables`` are those of a cascade's training brains."""
    if recipe.levels and recipe.level is None:
        names = ", ".join(level.name for level in recipe.levels)
        raise MedDPMError(f"the levels of {recipe.name} are trained one by one: choose {names} with --level")
    return LevelTask(recipe, device, dtype, tables) if recipe.level else TimestepTask(recipe, device, dtype)


def network_of(recipe: Recipe) -> Network:
    """The network that ``recipe`` trains, with fresh weights on the CPU."""
    return make_task(replace(recipe, distillation=None), torch.device("cpu"), torch.float32).network
