"""What does one level of a cascade learn? To draw the bands of real brains, whitened, from what it is given.

A patch of a brain is halved until its cells are those of the level, as the coarser levels would have drawn it.
Its bands less the share of the painted ones, in units of their local spread, have unit variance; the network answers
for them with noise as in Karras et al. 2022 (arXiv 2206.00364, data variance 1), which is v up to its sign. All of this
is computed on the device, from voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from MedDPMLib.data import Case, VariedCases
from MedDPMLib.data.cases import CasesWithDepths
from MedDPMLib.data.samples import Sample
from MedDPMLib.diffusion.names import CASCADE_LEVELS
from MedDPMLib.imaging.appearance import appearance
from MedDPMLib.imaging.haar import halve, halve_mask, split, to_blocks
from MedDPMLib.masks.distances import FARTHEST
from MedDPMLib.networks import build_network
from MedDPMLib.networks.cascade import (
    APPEARANCE_JITTER,
    Cascade,
    CascadeLevel,
    condition_noise,
    known_colors,
    label_fractions,
)
from MedDPMLib.recipes.parts import Stage
from MedDPMLib.recipes.recipe import Recipe, recipe_card
from MedDPMLib.train.examples import MEASURED_LEVELS, seeded
from MedDPMLib.train.objective import penalty
from MedDPMLib.train.stored_tables import CascadeTables
from MedDPMLib.train.task import Task

#: Streams of random numbers, apart from those of :mod:`MedDPMLib.train.examples`.
_NOISE, _APPEARANCE = 32, 33

#: The noise that is drawn lies between these.
_LEAST_NOISE, _MOST_NOISE = 0.02, 80.0

#: Where the Huber loss turns from the square to the absolute value, in deviations of what is answered: rare bright
#: voxels, vessels, are within it, and are not treated as outliers.
_HUBER_DELTA = 3.0

#: Held-out cases are measured at this r of r^2 times the greatest noise in the coarser image.
_MEASURED_NOISE = 1 / 3


@dataclass(frozen=True)
class LevelExample:
    """One batch of boxes of voxels: ``image`` (B, C, D, H, W) in [-1, 1], ``labels`` (B, D, H, W) counted from 1,
    ``depth`` (B, 2, D, H, W) in voxels; by cell where they lie, ``position`` (B, 3, d, h, w), and the ``noise`` (B,
    bands, d, h, w) and that of the coarser means, ``coarser`` (B, C, d, h, w).

    ``sigma`` (B,) is the noise, ``added`` (B,) the coarser one's; ``appearance`` (B, A) and ``colors`` (B, L, C) are
    those that the brain is drawn with; ``cases`` are the names.
    """

    image: Tensor
    labels: Tensor
    depth: Tensor
    position: Tensor
    noise: Tensor
    coarser: Tensor
    sigma: Tensor
    added: Tensor
    appearance: Tensor
    colors: Tensor
    cases: tuple[str, ...]

    def to(self, device: torch.device) -> LevelExample:
        """The same on ``device``."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if name != "cases"})


class LevelTask(Task):
    """The level of ``recipe`` that is trained, computed on ``device`` in ``dtype``; ``tables`` are what the cascade
    knows of its training brains (without them it knows nothing, which is enough to measure its speed)."""

    shardable = False

    def __init__(
        self, recipe: Recipe, device: torch.device, dtype: torch.dtype, tables: CascadeTables | None = None
    ) -> None:
        self.recipe, self.device, self.dtype, self.tables = recipe, device, dtype, tables
        self.cascade: Cascade = build_network(recipe_card(recipe).network_description)
        if tables is not None:
            self.cascade.load_state_dict(tables.known, strict=False)
        #: On the CPU, for the examples.
        self.network: CascadeLevel = self.cascade.levels[CASCADE_LEVELS.index(recipe.level)]  # type: ignore
        self.network.start_training()
        scheme = recipe.label_scheme
        #: Where the tumor's labels are among all.
        self.tumor = [index for index, label in enumerate(scheme.labels) if label in scheme.tumor]

    def loss(self, network: nn.Module, batch: LevelExample) -> Tensor:
        batch = batch.to(self.device)
        level = self.network
        with torch.no_grad():
            seen = [torch.stack(parts) for parts in zip(*map(self.see, _single(batch)), strict=True)]
        bands, given, inside, weight = seen
        noise, keep, add, _ = level.preconditioning(batch.sigma)
        x = (bands + batch.noise * noise) * inside
        answer = network(x, batch.sigma, condition_noise(batch.added), batch.appearance, given.to(self.dtype))
        truth = (bands - keep * x) / add
        error = penalty(self.recipe.training.loss, answer, truth, _HUBER_DELTA)
        return (error * weight).sum() / (weight.sum() * level.bands).clamp_min(1e-6)

    def see(self, one: LevelExample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a batch of one, by cell: the bands to draw (B, d, h, w), 0 outside, what the network is given (count, d,
        h, w), where there is brain (1, d, h, w), and how much an error counts there (1, d, h, w)."""
        level, labels = self.network, one.labels[0]
        image, inside = one.image[0], labels > 0
        for _ in range(int(np.log2(level.cell)) - 1):
            image, inside = halve(image, inside), halve_mask(inside)
        means, details = split(image, inside)
        inside = halve_mask(inside)
        fractions = label_fractions(labels, level.labels, level.cell // 2)
        bands, coarser = level.bands_of(means, details), None
        if not level.first:
            coarser = (level.whiten_means(means) + one.added * one.coarser[0]) * inside
        painted = level.painted(fractions, one.colors[0])
        depth = F.avg_pool3d(one.depth, level.cell)[0]
        given = level.given(fractions, depth, one.position[0], painted, coarser)
        share = level.painted_share[:, None, None, None]
        bands = (bands - share * painted) / level.spread(fractions, one.appearance[0]) * inside
        tumor = to_blocks(fractions[self.tumor].sum(dim=0)[None])[0].amax(dim=0).clamp(max=1)
        weight = inside * (1 + (self.recipe.training.tumor_weight - 1) * tumor)
        return bands, given, inside[None], weight[None]

    def examples(self, stage: Stage, cases: Dataset | Sequence[Case]) -> LevelExamples:
        return LevelExamples(self.recipe, stage, cases, self.cascade, self.tables)

    def own_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of this level; tables are those of its own training brains, whatever another's were."""
        start = f"levels.{CASCADE_LEVELS.index(self.recipe.level)}."
        learnt = {name.removeprefix(start): t for name, t in weights.items() if name.startswith(f"{start}network.")}
        own = {name: t for name, t in self.network.state_dict().items() if not name.startswith("network.")}
        return {**own, **learnt} if learnt else {}

    def random_batch(self, size: Sequence[int], count: int) -> LevelExample:
        level, shape = self.network, tuple(reversed(size))
        generator = torch.Generator().manual_seed(0)
        cells = [side // level.cell for side in shape]

        def rand(*sides: int) -> Tensor:
            return torch.rand((count, *sides), generator=generator)

        labels = torch.randint(1, level.labels + 1, (count, *shape), generator=generator, dtype=torch.uint8)
        features = self.cascade.appearances.shape[1]
        return LevelExample(
            rand(level.channels, *shape), labels, rand(2, *shape), rand(3, *cells), rand(level.bands, *cells),
            rand(level.channels, *cells), rand() + 0.5, rand(), rand(features), rand(level.labels, level.channels),
            ("random",),
        ).to(self.device)  # fmt: skip


class LevelExamples:
    """The examples of one level by their number, out of ``cases``: mirrored, and varied where the level is.

    A training brain, one of those in ``tables``, is painted in the colors that a regression on other brains expects of
    its appearance, as any new patient will be; one that is held out in those of the ``cascade``.
    """

    def __init__(
        self, recipe: Recipe, stage: Stage, cases: Dataset | Sequence[Case], cascade: Cascade,
        tables: CascadeTables | None,
    ) -> None:  # fmt: skip
        self.recipe, self.settings, self.tables = recipe, recipe.trained_level, tables
        self.scheme = recipe.label_scheme
        self.cases, self.cascade = cases, cascade
        index = CASCADE_LEVELS.index(recipe.level)
        level: CascadeLevel = cascade.levels[index]  # type: ignore[assignment]
        self.cell, self.bands, self.channels = level.cell, level.bands, level.channels
        #: The cascade's own knowledge stays on the CPU, wherever its level goes.
        self.known = {name: tensor.detach().cpu().clone() for name, tensor in cascade.named_buffers(recurse=False)}
        augmentation = recipe.augmentation
        if not self.settings.varied:
            augmentation = replace(augmentation, rotation=0.0, scaling=0.0, translation=0.0, elastic=0.0)
        self.size, patch = tuple(reversed(stage.size)), tuple(reversed(stage.example_size))
        derived = CasesWithDepths(cases, self.scheme)
        self.varied = VariedCases(derived, augmentation, self.size, patch, self.scheme, recipe.training.seed)
        self.count = len(cases)
        self.table = np.zeros(256, np.uint8)
        self.table[list(self.scheme.values)] = np.arange(1, len(self.scheme.values) + 1)
        self._measured: dict[str, tuple[Tensor, Tensor]] = {}

    def batch(self, numbers: Sequence[int]) -> LevelExample:
        """The examples of these ``numbers`` together."""
        samples = [self.varied[number] for number in numbers]
        draws = [seeded(self.recipe.training.seed, _NOISE, number) for number in numbers]
        mean, sd = self.settings.noise
        sigmas = [float((mean + sd * torch.randn((), generator=one)).exp()) for one in draws]
        added = [float(torch.rand((), generator=one)) ** 2 * self.settings.coarser_noise for one in draws]
        looks = [self._look(sample.case, number) for sample, number in zip(samples, numbers, strict=True)]
        return self._joined(samples, draws, sigmas, added, looks)

    def held_out(self) -> Iterator[LevelExample]:
        """Each case at noise from low to high: the middles of four equal shares of what is drawn."""
        mean, sd = self.settings.noise
        middles = (torch.arange(MEASURED_LEVELS) + 0.5) / MEASURED_LEVELS
        sigmas = (mean + sd * torch.distributions.Normal(0.0, 1.0).icdf(middles)).exp().tolist()
        added = _MEASURED_NOISE**2 * self.settings.coarser_noise
        for number in range(self.count * MEASURED_LEVELS):
            sample = self.varied[number]
            draw = seeded(self.recipe.training.seed, _NOISE, number)
            look = self._look(sample.case, None)
            yield self._joined([sample], [draw], [sigmas[number // self.count]], [added], [look])

    def _joined(
        self, samples: Sequence[Sample], draws: Sequence[torch.Generator], sigmas: Sequence[float],
        added: Sequence[float], looks: Sequence[tuple[Tensor, Tensor]],
    ) -> LevelExample:  # fmt: skip
        made = []
        for sample, draw, sigma, more, look in zip(samples, draws, sigmas, added, looks, strict=True):
            cells = tuple(side // self.cell for side in sample.labels.shape)
            made.append(
                LevelExample(
                    image=_unmixed(sample.image, self.channels)[None],
                    labels=torch.from_numpy(self.table[sample.labels.numpy()])[None],
                    depth=sample.image[None, self.channels + 1 :] * FARTHEST,
                    position=self._positions(sample.positions)[None],
                    noise=torch.randn((1, self.bands, *cells), generator=draw),
                    coarser=torch.randn((1, self.channels, *cells), generator=draw),
                    sigma=torch.tensor([min(max(sigma, _LEAST_NOISE), _MOST_NOISE)]),
                    added=torch.tensor([more]),
                    appearance=look[0][None],
                    colors=look[1][None],
                    cases=(sample.case,),
                )
            )
        joined = {entry.name: [getattr(one, entry.name) for one in made] for entry in fields(LevelExample)}
        cases = tuple(name for names in joined.pop("cases") for name in names)
        return LevelExample(cases=cases, **{name: torch.cat(tensors) for name, tensors in joined.items()})

    def _positions(self, positions: Tensor) -> Tensor:
        """(3, d, h, w): of the middles of cells from the middle of the grid, along k, j, i, in voxels, from the
        normalized coordinates of voxels along i, j, k."""
        every, cell = slice(None), self.cell
        first = positions[every, ::cell, ::cell, ::cell]
        last = positions[every, cell - 1 :: cell, cell - 1 :: cell, cell - 1 :: cell]
        return ((first + last) / 2).flip(0) * (torch.tensor(self.size) / 2)[:, None, None, None]

    def _look(self, case: str, number: int | None) -> tuple[Tensor, Tensor]:
        """The appearance (A,) that the brain is drawn with, a little varied for example ``number``, and its colors."""
        if self.tables is not None and case in self.tables.cases:
            index = self.tables.cases.index(case)
            values, weights = self.tables.appearances[index], self.tables.color_weights[index]
        else:
            values, weights = self._measure(case)
        if number is not None:
            draw = seeded(self.recipe.training.seed, _APPEARANCE, number)
            values = values + APPEARANCE_JITTER * torch.randn(values.shape, generator=draw)
        return values, known_colors(weights, values)

    def _measure(self, name: str) -> tuple[Tensor, Tensor]:
        """The appearance of a case that is held out, and the regression that it is painted by."""
        if name not in self._measured:
            case = next(case for case in (self.cases[n] for n in range(self.count)) if case.name == name)
            images, labels = case.image.float().numpy(), case.labels.numpy()
            values = torch.from_numpy(np.concatenate([appearance(image, labels, self.scheme) for image in images]))
            mean, deviation = self.known["appearance_mean"], self.known["appearance_deviation"]
            self._measured[name] = ((values - mean) / deviation).clamp(-3, 3), self.known["color_weights"]
        return self._measured[name]


def _single(batch: LevelExample) -> Iterator[LevelExample]:
    for index in range(len(batch.sigma)):
        part = slice(index, index + 1)
        yield replace(batch, **{name: value[part] for name, value in vars(batch).items() if name != "cases"})


def _unmixed(image: Tensor, channels: int) -> Tensor:
    """The images (C, ...) among what :func:`MedDPMLib.data.cases.with_depths` gives, interpolated or not: what
    interpolation mixed in from outside the brain is taken out."""
    share = (image[channels] + 1) / 2
    return ((image[:channels] + 1) / share.clamp_min(0.05) - 1).clamp(-1, 1)
