"""How does a cascade draw a brain? Level by level, each in the box of the cells that hold any of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedDPMLib.diffusion.noise_levels import noise_levels, sample_levels
from MedDPMLib.imaging.haar import halve_mask
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

#: How long a step of each level takes, in those of the finest.
_WORK = (0.25, 0.2, 1.0)

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
        network, labels, card.condition_scheme, look, levels=card.levels, seed=seed, steps=settings.steps,
        dtype=execution.dtype, progress=progress,
    )  # fmt: skip


def draw(
    cascade: Cascade,
    labels: np.ndarray,
    scheme: LabelScheme,
    appearance: Tensor,
    *,
    levels: Sequence[Mapping[str, float]],
    seed: int,
    steps: int,
    dtype: torch.dtype,
    progress: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """The images (C, D, H, W), float32 in [-1, 1], -1 where there is no label; ``cascade`` is one that
    :meth:`MedDPMLib.models.model.Model.prepared` gives for ``dtype``.

    ``labels`` (D, H, W) holds the values of ``scheme``, its sides multiples of 16; ``appearance`` (A,) is standardized
    (:meth:`Cascade.standardize`). Each level is sampled as its table in ``levels`` says, those of
    :attr:`MedDPMLib.models.card.Card.levels`, in ``steps`` times its own steps. ``progress(step, steps, x0)`` is called
    ``steps`` times, whenever another share of the work is done, with the image (1, C, D, H, W) as it is.
    """
    drawing = _Drawing(cascade, labels, scheme, appearance, torch.Generator().manual_seed(seed), dtype)
    counts = [max(1, round(steps * sampling["steps"])) for sampling in levels]
    work = [0.0, *np.cumsum([count * share for count, share in zip(counts, _WORK, strict=True)])]
    reported, image = 0, None
    for index, (level, sampling, count) in enumerate(zip(cascade.levels, levels, counts, strict=True)):

        def tell(step: int, drawn: Callable[[], Tensor], index: int = index) -> None:
            nonlocal reported
            done = int(steps * (work[index] + step * _WORK[index]) / work[-1] + 1e-6)
            while progress is not None and reported < done:
                reported += 1
                progress(reported, steps, drawing.whole(drawn())[None])

        image = drawing.level(level, sampling, count, image, tell)
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
        for cell in (2, 4):
            self.inside[cell] = halve_mask(self.inside[cell // 2])

    @torch.no_grad()
    def level(
        self, level: CascadeLevel, sampling: Mapping[str, float], steps: int, coarser: Tensor | None,
        tell: Callable[[int, Callable[[], Tensor]], None],
    ) -> Tensor:  # fmt: skip
        """The image (C, ...) of cells of ``level.drawn_cell`` voxels, of all but the first level from the ``coarser``
        one, of cells of ``level.cell``."""
        cell = level.cell
        box = box_around(self.inside[cell], level.multiple)
        inside = self.inside[cell][box].to(self.device)
        means = whitened = None
        if coarser is not None:
            means = coarser[(slice(None), *box)]
            whitened = level.whiten_means(means)
            whitened = (whitened + sampling["coarser_noise"] * self._noise(whitened.shape)) * inside
        encoded, painted, spread = self._encode(level, box, whitened)
        added = condition_noise(torch.full((1,), float(sampling["coarser_noise"]), device=self.device))
        appearance = self.appearance[None]

        def estimate(x: Tensor, sigma: float) -> Tensor:
            sigmas = torch.full((1,), sigma, device=self.device)
            return level.estimate(x, sigmas, added, appearance, encoded, self.dtype)[0] * inside

        def image(bands: Tensor) -> Tensor:
            drawn = level.image_of(bands[0] * spread + painted, means)
            where = self.inside[level.drawn_cell]
            whole = torch.zeros(level.channels, *where.shape, device=self.device)
            factor = cell // level.drawn_cell
            whole[(slice(None), *(slice(factor * part.start, factor * part.stop) for part in box))] = drawn
            return whole * where.to(self.device)

        noise = self._noise((1, level.bands, *inside.shape)) * inside
        levels = noise_levels(steps, sampling["lowest_noise"], sampling["highest_noise"])
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
