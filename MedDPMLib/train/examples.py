"""Which examples does an iteration of a network of timesteps train on, and which numbers has any iteration's?

Everything random about an example is determined by the recipe's seed and the number of the example. Iteration n uses
the same examples whether or not the run was interrupted before, and however many processes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from MedDPMLib.data import Case, VariedCases
from MedDPMLib.data.cases import is_one_of
from MedDPMLib.diffusion.samplers import timestep_grid
from MedDPMLib.masks.condition import condition
from MedDPMLib.recipes.parts import Stage
from MedDPMLib.recipes.recipe import Recipe
from MedDPMLib.recipes.segmenter import SegmenterRecipe

T = TypeVar("T")
Made = TypeVar("Made")

#: Streams of random numbers; those of MedDPMLib.data are counted from 0.
_NOISE, _HELD_OUT = 16, 17

#: At so many noise levels each held-out case is measured.
MEASURED_LEVELS = 4


@dataclass(frozen=True)
class Example:
    """One batch, float32: ``x0`` and ``noise`` (B, C, D, H, W), ``condition`` (B, K, D, H, W), ``t`` (B,) and
    ``weight`` (B, 1, D, H, W), how much an error counts at each voxel; ``cases`` are the names."""

    x0: Tensor
    noise: Tensor
    condition: Tensor
    t: Tensor
    weight: Tensor
    cases: tuple[str, ...]

    def to(self, device: torch.device) -> Example:
        """The same on ``device``."""
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "cases"}
        return Example(cases=self.cases, **moved)


class Examples:
    """The examples of one ``stage`` by their number, out of the varied ``cases``."""

    def __init__(self, recipe: Recipe, stage: Stage, cases: Dataset | Sequence[Case]) -> None:
        self.recipe = recipe
        self.scheme = recipe.label_scheme
        #: The timesteps to train on, from low to high noise: all of them, or those that a student uses.
        timesteps, student = recipe.schedule["timesteps"], recipe.distillation
        self.timesteps = timestep_grid(timesteps, student.steps)[::-1] if student else range(timesteps)
        size, patch = tuple(reversed(stage.size)), stage.patch and tuple(reversed(stage.patch))
        self.varied = VariedCases(cases, recipe.augmentation, size, patch, self.scheme, recipe.training.seed)

    def batch(self, numbers: Sequence[int], timesteps: Sequence[int] | None = None) -> Example:
        """The examples of these ``numbers`` together, each as it is alone; at ``timesteps`` instead of drawn ones."""
        chosen: Sequence[int | None] = timesteps or [None] * len(numbers)
        made = [self._example(number, t) for number, t in zip(numbers, chosen, strict=True)]
        joined = {entry.name: [getattr(example, entry.name) for example in made] for entry in fields(Example)}
        cases = tuple(name for names in joined.pop("cases") for name in names)
        return Example(cases=cases, **{name: torch.cat(tensors) for name, tensors in joined.items()})

    def held_out(self) -> Iterator[Example]:
        """The fixed examples to measure on, if the cases are held out: each case at timesteps from low to high."""
        count = len(self.varied)
        for number in range(count * MEASURED_LEVELS):
            place = int((number // count + 0.5) / MEASURED_LEVELS * len(self.timesteps))
            yield self.batch([number], [self.timesteps[place]])

    def _example(self, number: int, timestep: int | None) -> Example:
        recipe, settings = self.recipe, self.recipe.training
        sample = self.varied[number]
        generator = seeded(settings.seed, _NOISE, number)
        r = torch.rand((1,), generator=generator, dtype=torch.float64)
        count = len(self.timesteps)
        place = ((1 - r**settings.high_noise) * count).long().clamp(max=count - 1)
        t = torch.tensor([self.timesteps[place] if timestep is None else timestep])
        unlabeled = torch.rand((), generator=generator) < recipe.label_dropout
        labels = torch.zeros_like(sample.labels) if unlabeled else sample.labels
        encoded = torch.from_numpy(condition(labels.numpy(), self.scheme, recipe.mask_encoding))
        if recipe.positions:
            encoded = torch.cat([encoded, sample.positions])
        weight = torch.full(sample.labels.shape, settings.background_weight)
        weight[sample.labels > 0] = 1.0
        for label in self.scheme.tumor:
            weight[sample.labels == label.value] = settings.tumor_weight
        noise = torch.randn(sample.image.shape, generator=generator)
        return Example(sample.image[None], noise[None], encoded[None], t, weight[None, None], (sample.case,))


def remaining_stages(recipe: Recipe | SegmenterRecipe, start: int) -> Iterator[tuple[Stage, range]]:
    """The stages that are not over before iteration ``start``, counted from 0, with the iterations left of each."""
    first = 0
    for stage in recipe.stages:
        left = range(max(start, first), first + stage.iterations)
        if left:
            yield stage, left
        first += stage.iterations


def batch_numbers(
    recipe: Recipe | SegmenterRecipe, iteration: int, process: int = 0, processes: int = 1
) -> list[range]:
    """The numbers of the examples in the batches of ``iteration``, counted from 0, that ``process`` computes.

    The batches of an iteration are dealt out in turn; their number, ``gradient_accumulation_steps``, is a multiple of
    ``processes``.
    """
    accumulate = recipe.training.gradient_accumulation_steps
    number = begun = 0
    for stage in recipe.stages:
        if iteration < begun + stage.iterations:
            number += (iteration - begun) * accumulate * stage.batch
            batches = [range(number + n * stage.batch, number + (n + 1) * stage.batch) for n in range(accumulate)]
            return batches[process::processes]
        number += stage.iterations * accumulate * stage.batch
        begun += stage.iterations
    raise IndexError(f"the recipe has {begun} iterations, not {iteration + 1}")


def split_cases(
    cases: Dataset | Sequence[Case], share: float, seed: int, validation: Collection[str] = ()
) -> tuple[Subset, Subset]:
    """``cases`` to train on, and those that are held out: those called as one of ``validation``, and the ``share`` of
    the others, at least one if above 0, chosen by ``seed``."""
    named = [index for index in range(len(cases)) if is_one_of(cases[index].name, validation)] if validation else []
    others = [index for index in range(len(cases)) if index not in set(named)]
    count = min(max(1, round(share * len(others))), max(len(others) - 1, 0)) if share else 0
    order = [others[place] for place in torch.randperm(len(others), generator=seeded(seed, _HELD_OUT, 0)).tolist()]
    return Subset(cases, sorted(order[count:])), Subset(cases, sorted([*named, *order[:count]]))


def seeded(seed: int, stream: int, number: int) -> torch.Generator:
    """A generator of its own for each ``number`` of each ``stream``."""
    state = np.random.SeedSequence((seed, stream, number)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def made_ahead(make: Callable[[T], Made], wanted: Iterable[T], workers: int) -> Iterator[Made]:
    """``make`` of each of ``wanted``, in order, computed by ``workers`` threads while training on earlier ones.

    Threads are sufficient: PyTorch and numpy release the interpreter lock while they compute, nothing is copied between
    processes (which needs shared memory that containers rarely have), and a volume is in memory once.
    """
    pending = []
    waiting = iter(wanted)
    # One thread of its own for each, or its threads and those of the convolutions wait for each other.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            pending += [pool.submit(make, item) for item in islice(waiting, workers + 1)]
            while pending:
                made = pending.pop(0).result()
                pending += [pool.submit(make, item) for item in islice(waiting, 1)]
                yield made
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
