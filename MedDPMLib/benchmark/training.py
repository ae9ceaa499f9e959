"""How fast is training here, and how much memory does it take? Baseline and optimized, in one run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from shutil import which

import torch

from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.networks.denoiser import Network
from MedDPMLib.recipes.recipe import Recipe, recipe_values
from MedDPMLib.runtime.device import choose_execution, free_memory
from MedDPMLib.train.iteration_cost import Job, measure
from MedDPMLib.train.memory_estimate import TIMES_GENERATING
from MedDPMLib.train.tasks import network_of


def can_compile(device: torch.device) -> bool:
    """Whether the requirements of ``torch.compile`` are installed: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    compilers = (os.environ.get("CXX") or "g++", "clang++")
    return device.type == "cpu" and any(which(compiler) for compiler in compilers)


@dataclass(frozen=True)
class TrainingRow:
    """One configuration of training: ``iterations_per_second``, the ``peak`` of its memory in bytes without PyTorch
    itself, and ``speed_up`` over the baseline; None for what could not be measured, with the ``problem``."""

    recipe: str
    configuration: str
    precision: str
    grid: tuple[int, int, int]
    iterations_per_second: float | None
    peak: int | None
    speed_up: float | None
    problem: str | None = None


def measure_training(
    recipe: Recipe, *, grid: tuple[int, int, int] | None = None, iterations: int = 3, device: str = "auto"
) -> list[TrainingRow]:
    """The same network trained in the baseline configuration (float32, contiguous), and optimized in the fastest
    precision on ``device``: as it is, with fused kernels if a compiler is installed, and with recomputed activations.

    ``grid`` (i, j, k) is that of the examples, None for the recipe's last stage; an iteration has one example. Each row
    is measured in a process of its own. The teacher of a student is not included.
    """
    recipe = replace(recipe, distillation=None)
    grid = recipe.stages[-1].example_size if grid is None else grid
    network = network_of(recipe)
    multiple = network.side_multiple
    if any(side % multiple or side < 1 for side in grid):
        sides = " x ".join(map(str, grid))
        raise MedDPMError(f"the network of {recipe.name} needs sides that are multiples of {multiple}, not {sides}")
    execution = choose_execution(device)
    configurations = [
        ("baseline", "float32", {"baseline": True, "checkpointing": False}),
        ("optimized", execution.precision, {"baseline": False, "checkpointing": False}),
    ]
    if can_compile(execution.device):
        configurations.append(
            ("optimized, --compile", execution.precision, {"baseline": False, "checkpointing": False, "compile": True})
        )
    configurations.append(
        ("optimized, --checkpointing", execution.precision, {"baseline": False, "checkpointing": True})
    )
    rows: list[TrainingRow] = []
    for configuration, precision, how in configurations:
        job = Job(recipe_values(recipe), [grid], 1, iterations, str(execution.device), precision, **how)
        try:
            if not how["checkpointing"]:
                _check_fits(network, grid, precision, execution.device)
            (found,) = measure(job)
        except MedDPMError as error:
            problem = "does not fit" if isinstance(error, OutOfMemory) else str(error)
            rows.append(TrainingRow(recipe.name, configuration, precision, grid, None, None, None, problem))
            continue
        speed = 1 / found.seconds
        baseline = rows[0].iterations_per_second if rows else speed
        rows.append(
            TrainingRow(recipe.name, configuration, precision, grid, speed, found.peak, baseline and speed / baseline)
        )
    return rows


def _check_fits(network: Network, grid: tuple[int, int, int], precision: str, device: torch.device) -> None:
    """Raises :class:`OutOfMemory` for what is far too large: trying it would exhaust the memory of the machine."""
    expected = TIMES_GENERATING * network.values_per_voxel * math.prod(grid) * getattr(torch, precision).itemsize
    if expected > 2 * free_memory(device):
        raise OutOfMemory(f"training takes about {expected / 1e9:.0f} GB")
