"""How long does one iteration take, and how much memory? Measured in a process of its own, whose peak is its own.

``python -m MedDPMLib.train.iteration_cost`` reads a :class:`Job` as JSON from stdin and prints a list of
:class:`IterationCost`; :func:`measure` starts it.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError, OutOfMemory

#: Environment variables of torchrun's processes; a measuring process is none of them.
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Job:
    """What to measure: ``recipe`` (its values), on each of ``grids`` (i, j, k) in turn, the smaller ones first.

    ``baseline``: the same network trained without any optimization of speed or memory: float32, contiguous, no fused
    optimizer. ``compile`` fuses kernels, as :class:`MedDPMLib.train.engine.Engine` does.
    """

    recipe: dict[str, Any]
    grids: list[tuple[int, int, int]]
    batch: int
    iterations: int
    device: str
    precision: str
    checkpointing: bool
    baseline: bool
    compile: bool = False


@dataclass(frozen=True)
class IterationCost:
    """``seconds`` of one iteration (the fastest, which other work disturbs least), and the ``peak`` of the memory in
    bytes, without that of PyTorch itself."""

    grid: tuple[int, int, int]
    seconds: float
    peak: int


def measure(job: Job) -> list[IterationCost]:
    """The cost on each grid of ``job``. Raises :class:`OutOfMemory` if one does not fit."""
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCH}
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "MedDPMLib.train.iteration_cost"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed, probably for lack of memory"])[-1]
        if done.returncode < 0 or "memory" in last:
            raise OutOfMemory(f"training on {job.grids[-1]} in {job.precision} does not fit into memory ({last:.150})")
        raise MedDPMError(f"the measurement failed: {last:.300}")
    return [IterationCost(tuple(row["grid"]), row["seconds"], row["peak"]) for row in json.loads(done.stdout)]


def _run(job: Job) -> list[IterationCost]:
    import psutil
    import torch

    from MedDPMLib.recipes.recipe import recipe_from
    from MedDPMLib.runtime.allocator import keep_freed_memory
    from MedDPMLib.runtime.device import choose_execution
    from MedDPMLib.runtime.hardware import peak_memory

    if not job.baseline:
        keep_freed_memory()  # as the command line does
    execution = choose_execution(job.device, job.precision)
    recipe = recipe_from(job.recipe)
    recipe = replace(recipe, training=replace(recipe.training, gradient_accumulation_steps=1))
    device = execution.device
    before = 0 if device.type == "cuda" else psutil.Process().memory_info().rss
    if job.baseline:
        task, step = _baseline(recipe, device)
    else:
        task, step = _optimized(recipe, execution, job.checkpointing, job.compile)
    found = []
    for grid in job.grids:
        example = task.random_batch(grid, job.batch)
        seconds = []
        for _ in range(1 + job.iterations):  # the first one takes longer
            begun = time.perf_counter()
            step(example)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begun)
        # On a GPU without the allocator's fragmentation, which does not grow linearly with the grid.
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory(device) - before
        found.append(IterationCost(grid, min(seconds[1:]), peak))
    return found


def _optimized(recipe, execution, checkpointing: bool, compile: bool) -> tuple[Any, Callable[[Any], object]]:
    from MedDPMLib.train.engine import Engine, NotFinite

    engine = Engine(recipe, execution, checkpointing=checkpointing, compile=compile)

    def step(example) -> None:
        try:
            engine.step([example])
        except NotFinite:
            if engine.iteration == 0:
                raise
            # Random numbers may overflow; once the optimizer has its moments, this does not change the memory.

    return engine.task, step


def _baseline(recipe, device) -> tuple[Any, Callable[[Any], object]]:
    import torch

    from MedDPMLib.train.tasks import make_task

    task = make_task(recipe, device, torch.float32)
    network = task.network.to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.training.learning_rate)

    def step(example) -> None:
        task.loss(network, example).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(weight, 1 - recipe.training.ema)

    return task, step


if __name__ == "__main__":
    print(json.dumps([asdict(found) for found in _run(Job(**json.load(sys.stdin)))]))
