"""Is there enough memory, and what would fit? Checked before the first step.

The memory of a step is measured on two small grids, each combination of precision and recomputed activations in a
process of its own, and extrapolated linearly: weights, average and optimizer take the same on any grid, the activations
of a convolutional network grow with its voxels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.networks.denoiser import Network
from MedDPMLib.recipes.recipe import Recipe, Stage, recipe_values
from MedDPMLib.runtime.device import Execution, free_memory
from MedDPMLib.train.iteration_cost import Job, measure
from MedDPMLib.train.tasks import network_of

#: Bytes that the larger of two cubes takes about, on which is measured: what the memory of every grid has in common,
#: and the gaps of the heap, come to some hundred megabytes. And between which sides it lies.
_MEASURED = 2 * 10**9
_SIDES = (48, 96)

#: Training keeps about so many times what generating has at its peak (80 GB against 660 values a voxel for the
#: published BraTS network).
TIMES_GENERATING = 6

#: What is this far from filling the memory is not measured: that takes seconds.
_FAR = 10


@dataclass(frozen=True)
class Need:
    """About how many ``bytes`` training takes, for ``batch`` examples of ``grid`` (i, j, k) at a time."""

    grid: tuple[int, int, int]
    batch: int
    precision: str
    checkpointing: bool
    bytes: int


def needs(
    recipe: Recipe, stages: Sequence[Stage], device: torch.device, precision: str, checkpointing: bool
) -> list[Need]:
    """What each of ``stages`` takes; each call measures for some seconds."""
    cubes = _cubes(network_of(recipe), stages)
    job = Job(recipe_values(recipe), cubes, 1, 1, str(device), precision, checkpointing, baseline=False)
    small, large = measure(job)
    voxels = [math.prod(cube) for cube in cubes]
    slope = max(0.0, (large.peak - small.peak) / (voxels[1] - voxels[0]))
    fixed = large.peak - slope * voxels[1]
    return [
        Need(
            stage.example_size, stage.batch, precision, checkpointing,
            round(fixed + slope * math.prod(stage.example_size) * stage.batch),
        )
        for stage in stages
    ]  # fmt: skip


def _cubes(network: Network, stages: Sequence[Stage]) -> list[tuple[int, int, int]]:
    """The two cubes to measure on, (i, j, k), the smaller one first: no larger than the largest of ``stages``, if that
    has room."""
    multiple = network.side_multiple
    most = max(math.prod(stage.example_size) * stage.batch for stage in stages)
    fitting = min(most, _MEASURED / (TIMES_GENERATING * network.values_per_voxel * torch.float32.itemsize))
    low, high = _SIDES
    large = min(high, max(low, fitting ** (1 / 3)))
    units = max(2, math.floor(large / multiple))
    return [(side * multiple,) * 3 for side in (max(1, units * 2 // 3), units)]


def memory_table(recipe: Recipe, device: torch.device) -> Iterator[Need]:
    """For each stage what training takes in each precision, with and without recomputed activations, where that can be
    measured."""
    stages = list({(stage.example_size, stage.batch): stage for stage in recipe.stages}.values())
    # On a CPU float16 is not computed, on a GPU it takes what bfloat16 takes.
    for precision in ("float32", "bfloat16"):
        for checkpointing in (False, True):
            yield from _measurable(recipe, stages, device, precision, checkpointing)


def _measurable(
    recipe: Recipe, stages: Sequence[Stage], device: torch.device, precision: str, checkpointing: bool
) -> list[Need]:
    """What :func:`needs` finds, or nothing where it cannot be measured: the other figures are worth having."""
    try:
        return needs(recipe, stages, device, precision, checkpointing)
    except MedDPMError:
        return []


def check_memory(recipe: Recipe, execution: Execution, checkpointing: bool, network: Network) -> None:
    """Raises :class:`OutOfMemory` if the largest stage will not fit into what is free; with what would."""
    free = free_memory(execution.device)
    if execution.device.type == "cpu":  # which the processes of torchrun share
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    largest = max(recipe.stages, key=lambda stage: math.prod(stage.example_size) * stage.batch)
    voxels = math.prod(largest.example_size) * largest.batch
    weights = sum(parameter.numel() for parameter in network.parameters())
    far = weights * 20 + _FAR * network.values_per_voxel * voxels * execution.dtype.itemsize
    if far < free and not recipe.distillation:  # whose teacher comes on top
        return
    # On a GPU the weights lie there already: what is asked is what the whole needs.
    total = torch.cuda.mem_get_info(execution.device)[1] if execution.device.type == "cuda" else free
    try:
        (need,) = needs(recipe, [largest], execution.device, execution.precision, checkpointing)
    except OutOfMemory:
        raise
    except MedDPMError:  # what cannot be measured is no reason not to try
        return
    if need.bytes < total:
        return
    others = [(execution.precision, True), ("bfloat16", False), ("bfloat16", True)]
    tried = [need]
    for precision, recomputed in dict.fromkeys(others):
        if (precision, recomputed) != (execution.precision, checkpointing) and precision != "float16":
            tried += _measurable(recipe, [largest], execution.device, precision, recomputed)
    fitting = [_spoken(other) for other in tried if other.bytes < total]
    smaller = (total / min(other.bytes for other in tried)) ** (1 / 3) * min(largest.example_size)
    smaller = max(1, math.floor(smaller / network.side_multiple)) * network.side_multiple
    advice = f"what fits: {'; '.join(fitting)}" if fitting else f"take patches of about {smaller} voxels a side"
    raise OutOfMemory(
        f"{_gigabytes(total)} of memory on {execution.device} are not enough to train {recipe.name}: {_spoken(need)};"
        f" {advice} (--set stages.0.patch=[...]; --estimate-memory prints the table)"
    )


@contextmanager
def memory_explained(recipe: Recipe, execution: Execution, checkpointing: bool):
    """Says what can be done when memory runs out after all."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(_ran_out(recipe, execution, checkpointing)) from error
    except RuntimeError as error:
        if isinstance(error, MedDPMError) or "alloc" not in str(error) or "memory" not in str(error):
            raise
        raise OutOfMemory(_ran_out(recipe, execution, checkpointing)) from error


def _ran_out(recipe: Recipe, execution: Execution, checkpointing: bool) -> str:
    remedies = [] if checkpointing else ["--checkpointing"]
    remedies += ["--precision bfloat16"] if execution.dtype == torch.float32 else []
    remedies += ["smaller patches (--set stages.0.patch=[...])"]
    return (
        f"the memory of {execution.device} ran out while training {recipe.name} in {execution.precision}: use"
        f" {', '.join(remedies)}; meddpm train --recipe {recipe.name} --estimate-memory prints what would fit"
    )


def _spoken(need: Need) -> str:
    grid = " x ".join(map(str, need.grid))
    recomputed = " with --checkpointing" if need.checkpointing else ""
    return f"{_gigabytes(need.bytes)} for {need.batch} x {grid} in {need.precision}{recomputed}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
