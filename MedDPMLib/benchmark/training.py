"""How fast is training here, and how much memory does it take? Our way beside the plain one, in one run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from shutil import which

import torch

from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.networks import build_network
from MedDPMLib.networks.denoiser import Denoiser
from MedDPMLib.recipes.recipe import Recipe, recipe_card, recipe_values
from MedDPMLib.runtime.device import choose_execution, free_memory
from MedDPMLib.train.iteration_cost import Job, measure
from MedDPMLib.train.memory_estimate import TIMES_GENERATING


def can_compile(device: torch.device) -> bool:
    """Whether what ``torch.compile`` needs is there: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    compilers = (os.environ.get("CXX") or "g++", "clang++")
    return device.type == "cpu" and any(which(compiler) for compiler in compilers)


@dataclass(frozen=True)
class TrainingRow:
    """One way of training: ``iterations_per_second``, the ``peak`` of its memory in bytes above PyTorch itself, and
    ``speed_up`` against the plain way; None for what could not be measured, with the ``problem``."""

    recipe: str
    way: str
    precision: str
    grid: tuple[int, int, int]
    iterations_per_second: float | None
    peak: int | None
    speed_up: float | None
    problem: str | None = None


def measure_training(
    recipe: Recipe, *, grid: tuple[int, int, int] | None = None, iterations: int = 3, device: str = "auto"
) -> list[TrainingRow]:
    """The same network trained the plain way (float32, contiguous), our way in the precision that is fastest on
    ``device``, that with fused kernels where a compiler is at hand, and with activations recomputed.

    ``grid`` (i, j, k) is what is learnt from, None for the recipe's last stage; one example is one iteration. Each row
    is measured in a process of its own. A student's teacher is left out.
    """
    recipe = replace(recipe, distillation=None)
    grid = recipe.stages[-1].learnt if grid is None else grid
    network = build_network(recipe_card(recipe).network_description)
    multiple = network.side_multiple
    if any(side % multiple or side < 1 for side in grid):
        sides = " x ".join(map(str, grid))
        raise MedDPMError(f"the network of {recipe.name} needs sides that are multiples of {multiple}, not {sides}")
    execution = choose_execution(device)
    ways = [
        ("plain", "float32", {"plain": True, "checkpointing": False}),
        ("MedDPM", execution.precision, {"plain": False, "checkpointing": False}),
    ]
    if can_compile(execution.device):
        ways.append(
            ("MedDPM, --compile", execution.precision, {"plain": False, "checkpointing": False, "compile": True})
        )
    ways.append(("MedDPM, --checkpointing", execution.precision, {"plain": False, "checkpointing": True}))
    rows: list[TrainingRow] = []
    for way, precision, how in ways:
        job = Job(recipe_values(recipe), [grid], 1, iterations, str(execution.device), precision, **how)
        try:
            if not how["checkpointing"]:
                _check_fits(network, grid, precision, execution.device)
            (found,) = measure(job)
        except MedDPMError as error:
            problem = "does not fit" if isinstance(error, OutOfMemory) else str(error)
            rows.append(TrainingRow(recipe.name, way, precision, grid, None, None, None, problem))
            continue
        speed = 1 / found.seconds
        plain = rows[0].iterations_per_second if rows else speed
        rows.append(TrainingRow(recipe.name, way, precision, grid, speed, found.peak, plain and speed / plain))
    return rows


def _check_fits(network: Denoiser, grid: tuple[int, int, int], precision: str, device: torch.device) -> None:
    """Raises :class:`OutOfMemory` for what is far too large: to try it would take the memory of everything else."""
    expected = TIMES_GENERATING * network.values_per_voxel * math.prod(grid) * getattr(torch, precision).itemsize
    if expected > 2 * free_memory(device):
        raise OutOfMemory(f"training takes about {expected / 1e9:.0f} GB")
