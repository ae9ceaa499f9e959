"""How does a cascade draw a brain? Level by level, each in the box of the cells that hold any of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedDPMLib.diffusion.noise_levels import noise_levels, sample_levels
from MedDPMLib.imaging.haar import halve_mask, merge
from MedDPMLib.inference.appearance import chosen_appearance
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.masks.distances import depths
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.models.model import Model
from MedDPMLib.networks.cascade import (
    Cascade,
    CascadeLevel,
    box_around,
    cell_positions,
    condition_noise,
    label_fractions,
)
from MedDPMLib.runtime.device import Execution


@dataclass(frozen=True)
class _Course:
    """How a level is sampled: so many ``steps`` for each of the finest level's, from noise ``highest`` to ``lowest``,
    with the noise ``added`` to the coarser image. A step takes ``work`` times as long as one of the finest level."""

    steps: float
    lowest: float
    highest: float
    added: float
    work: float


#: By level. What noise is added to the coarser image hides the faults of the level that drew it. The estimate at the
#: lowest noise is taken for the image: further steps would add the grain of what the networks cannot tell from noise.
_COURSES = (
    _Course(steps=2.5, lowest=1.5, highest=40, added=0, work=0.05),
    _Course(steps=1.5, lowest=1, highest=10, added=0.05, work=0.15),
    _Course(steps=1, lowest=0.8, highest=10, added=0.05, work=1),
)

#: Cells of which the labels are encoded at a time, along D: the whole would be the largest array of a run.
_CELLS_AT_ONCE = 8


def sample_by_levels(
    model: Model,
    network: Cascade,
    labels: np.ndarray,
    execution: Execution,
    settings: GenerationSettings,
    seed: int,
    progress: Callable[[int, int, Tensor], None] | None,
) -> Tensor:
    """:func:`draw` in the appearance that ``settings`` name; see :func:`MedDPMLib.inference.sampling.sample_images`."""
    card = model.card
    look = chosen_appearance(network, card, settings.appearance, seed)
    return draw(
        network, labels, card.condition_scheme, look, seed=seed, steps=settings.steps, dtype=execution.dtype,
        progress=progress,
    )  # fmt: skip


def draw(
    cascade: Cascade,
    labels: np.ndarray,
    scheme: LabelScheme,
    appearance: Tensor,
    *,
    seed: int,
    steps: int,
    dtype: torch.dtype,
    progress: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """The images (C, D, H, W), float32 in [-1, 1], -1 where there is no label; ``cascade`` is one that
    :meth:`MedDPMLib.models.model.Model.prepared` gives for ``dtype``.

    ``labels`` (D, H, W) holds the values of ``scheme``, its sides multiples of 16; ``appearance`` (A,) is standardized
    (:meth:`Cascade.standardize`). The finest level takes ``steps``, the others about three and one and a half times as
    many. ``progress(step, steps, x0)`` is called ``steps`` times, whenever another share of the work is done, with the
    image (1, C, D, H, W) as it is.
    """
    drawing = _Drawing(cascade, labels, scheme, appearance, torch.Generator().manual_seed(seed), dtype)
    counts = [max(1, round(steps * course.steps)) for course in _COURSES]
    work = [0.0, *np.cumsum([count * course.work for count, course in zip(counts, _COURSES, strict=True)])]
    reported, image = 0, None
    for index, (level, course, count) in enumerate(zip(cascade.levels, _COURSES, counts, strict=True)):

        def tell(step: int, drawn: Callable[[], Tensor], index: int = index) -> None:
            nonlocal reported
            done = int(steps * (work[index] + step * _COURSES[index].work) / work[-1] + 1e-6)
            while progress is not None and reported < done:
                reported += 1
                progress(reported, steps, drawing.whole(drawn())[None])

        image = drawing.level(level, course, count, image, tell)
    return drawing.whole(image)


class _Drawing:
    """One brain being drawn."""

    def __init__(
        self, cascade: Cascade, labels: np.ndarray, scheme: LabelScheme, appearance: Tensor,
        generator: torch.Generator, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.device = cascade.appearance_mean.device
        self.appearance = appearance.to(self.device)
        self.colors = cascade.colors(self.appearance)
        self.generator, self.dtype = generator, dtype
        self.depths = torch.from_numpy(depths(labels, scheme))
        # Channels count from 1, whatever a scheme's values are.
        table = np.zeros(256, np.uint8)
        table[list(scheme.values)] = np.arange(1, len(scheme.values) + 1)
        self.labels = torch.from_numpy(table[labels])
        self.inside = {1: self.labels > 0}
        for cell in (2, 4, 8):
            self.inside[cell] = halve_mask(self.inside[cell // 2])

    @torch.no_grad()
    def level(
        self, level: CascadeLevel, course: _Course, steps: int, coarser: Tensor | None,
        tell: Callable[[int, Callable[[], Tensor]], None],
    ) -> Tensor:  # fmt: skip
        """The image (C, ...) of cells of half ``level.cell`` voxels, from that of whole ones, ``coarser``."""
        cell = level.cell
        box = box_around(self.inside[cell], level.multiple)
        inside = self.inside[cell][box].to(self.device)
        means = whitened = None
        if coarser is not None:
            means = coarser[(slice(None), *box)]
            whitened = level.whiten_means(means)
            whitened = (whitened + course.added * self._noise(whitened.shape)) * inside
        encoded, painted, spread = self._encode(level, box, whitened)
        added = condition_noise(torch.full((1,), float(course.added), device=self.device))
        appearance = self.appearance[None]

        def estimate(x: Tensor, sigma: float) -> Tensor:
            sigmas = torch.full((1,), sigma, device=self.device)
            return level.estimate(x, sigmas, added, appearance, encoded, self.dtype)[0] * inside

        def image(bands: Tensor) -> Tensor:
            bands = bands[0] * spread + painted
            if level.first:
                details = level.unwhiten_details(bands[level.channels :])
                merged = merge(level.unwhiten_means(bands[: level.channels]), details)
            else:
                merged = merge(means, level.unwhiten_details(bands))
            finer = self.inside[cell // 2]
            whole = torch.zeros(level.channels, *finer.shape, device=self.device)
            whole[(slice(None), *(slice(2 * part.start, 2 * part.stop) for part in box))] = merged
            return whole * finer.to(self.device)

        noise = self._noise((1, level.bands, *inside.shape)) * level.noise_ratio[:, None, None, None] * inside
        levels = noise_levels(steps, course.lowest, course.highest)
        return image(sample_levels(estimate, noise, levels, progress=lambda step, x0: tell(step, lambda: image(x0))))

    def whole(self, image: Tensor) -> Tensor:
        """``image`` of cells of any size as (C, D, H, W) on the CPU, with the background."""
        factor = self.labels.shape[0] // image.shape[1]
        if factor > 1:
            image = F.interpolate(image[None], scale_factor=float(factor), mode="nearest")[0]
        return torch.where(self.inside[1], image.cpu().clamp(-1, 1), -1.0)

    def _encode(
        self, level: CascadeLevel, box: tuple[slice, ...], coarser: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the network makes of all that it is given, (1, W, d, h, w), and where what is drawn begins and how far
        it spreads, (B, d, h, w)."""
        cell, shape = level.cell, tuple(part.stop - part.start for part in box)
        position = cell_positions(cell, [part.start for part in box], shape, self.labels.shape)
        encoded, painted, spread = [], [], []
        for first in range(0, shape[0], _CELLS_AT_ONCE):
            cells = slice(first, min(first + _CELLS_AT_ONCE, shape[0]))
            part = (slice(box[0].start + cells.start, box[0].start + cells.stop), *box[1:])
            voxels = tuple(slice(p.start * cell, p.stop * cell) for p in part)
            fractions = label_fractions(self.labels[voxels].to(self.device), level.labels, cell // 2)
            depth = F.avg_pool3d(self.depths[(slice(None), *voxels)][None].to(self.device), cell)[0]
            means = None if coarser is None else coarser[:, cells]
            paint = level.painted(fractions, self.colors)
            given = level.given(fractions, depth, position[:, cells].to(self.device), paint, means)
            encoded.append(level.network.encode(given[None].to(self.dtype)))
            painted.append(level.painted_share[:, None, None, None] * paint)
            spread.append(level.spread(fractions, self.appearance))
        return torch.cat(encoded, dim=2), torch.cat(painted, dim=1), torch.cat(spread, dim=1)

    def _noise(self, shape: Sequence[int]) -> Tensor:
        # From a generator of the CPU it is the same for every device.
        return torch.randn(*shape, generator=self.generator).to(self.device)
