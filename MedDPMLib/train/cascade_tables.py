"""What does a cascade know of its training brains before any network learns? Its tables, by sums and regressions.

First pass over the brains: how each looks, the mean of each label, and the means and deviations that whiten what is
drawn. Then the regression of label means on appearance, of which each training brain gets one that has not seen it:
painted by a regression that has, training brains would lie closer to their paint than any new patient will. Second
pass: how much of the painted bands is real, and how far the real ones spread around that, by label and appearance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.imaging.appearance import FEATURES, appearance
from MedDPMLib.imaging.haar import halve_mask, split
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.metrics.label_moments import label_moments
from MedDPMLib.networks.cascade import CELLS, Cascade, CascadeLevel, label_fractions

#: Each training brain is painted by a regression on the brains of the other folds.
FOLDS = 11

#: Penalties of the ridge regressions of colors and of log variances, on standardized features.
_COLOR_PENALTY, _VARIANCE_PENALTY = 5.0, 8.0

#: How much a feature counts for an image of another modality, and one that is no mean or deviation.
_OTHER_MODALITY, _OTHER_FEATURE = 0.3, 0.3
_MOMENTS = 7

#: So few brains with a label tell its mean only, not what it depends on.
_LEAST_BRAINS = 5

#: Cells of each brain that variances are estimated from, rounds of the estimate, and how much the mean variance counts
#: in it, as a share of all cells.
_CELLS, _ROUNDS, _PRIOR = 15_000, 40, 0.0005

#: (images (C, D, H, W) float32 in [-1, 1], labels (D, H, W) uint8 in the values of the scheme) of one brain.
Brain = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Tables:
    """What training needs beside the cascade's own tables: the ``appearances`` (brains, A), standardized, and
    ``color_weights`` (brains, labels, C, A + 1) of each brain, from the brains of the other folds."""

    appearances: Tensor
    color_weights: Tensor


def learn_tables(cascade: Cascade, brains: Callable[[], Iterator[Brain]], scheme: LabelScheme) -> Tables:
    """Fills the buffers of ``cascade`` from the training brains, which ``brains()`` yields anew each time."""
    looks, means, sums = [], [], {cell: _Sums() for cell in CELLS}
    for images, labels in brains():
        looks.append(np.concatenate([appearance(image, labels, scheme) for image in images]))
        means.append(np.stack([label_moments(image, labels, scheme.values).mean for image in images]))
        for cell, (cells, details, inside) in _split_to_cells(images, labels).items():
            sums[cell].add(cells[:, inside], details[:, :, inside])
    for level in cascade.levels:
        sums[level.cell].fill(level)
    looks, means = torch.from_numpy(np.stack(looks)), torch.from_numpy(np.stack(means)).transpose(1, 2)
    cascade.appearance_mean.copy_(looks.mean(dim=0))
    cascade.appearance_deviation.copy_(looks.std(dim=0, correction=0).clamp_min(1e-6))
    appearances = cascade.standardize(looks)
    cascade.appearances.copy_(appearances)
    cascade.color_weights.copy_(color_regression(appearances, means))
    folds = np.random.default_rng(0).permutation(len(looks)) % FOLDS
    others = {fold: color_regression(appearances, means, torch.from_numpy(folds != fold)) for fold in set(folds)}
    tables = Tables(appearances, torch.stack([others[fold] for fold in folds]))
    _learn_spreads(cascade, brains, scheme, tables)
    return tables


def color_regression(appearances: Tensor, means: Tensor, counted: Tensor | None = None) -> Tensor:
    """(labels, C, A + 1): the ridge regression of label means on the ``appearances`` (brains, A), the constant last.

    ``means`` is (brains, labels, C), NaN where a brain lacks a label; ``counted`` (brains,) says which brains count.
    A label's mean in one modality depends on that modality's features more than on the others'.
    """
    brains, labels, channels = means.shape
    counted = torch.ones(brains, dtype=torch.bool) if counted is None else counted
    weights = torch.zeros(labels, channels, appearances.shape[1] + 1)
    for label in range(labels):
        for channel in range(channels):
            known = counted & means[:, label, channel].isfinite()
            if known.sum() < _LEAST_BRAINS:
                weights[label, channel, -1] = means[known, label, channel].mean() if known.any() else 0.0
                continue
            scale = _feature_scale(channels, channel)
            weights[label, channel] = _ridge(
                appearances[known], means[known, label, channel], scale, penalty=_COLOR_PENALTY
            )
    return weights


def mixture_variances(shares: Tensor, squares: Tensor) -> Tensor:
    """(S, B): the variances v for which normal residuals of variance ``shares`` (S, n) v best explain their ``squares``
    (B, n): maximum likelihood, by multiplicative updates (Fevotte, Bertin and Durrieu 2009), with a little of the mean
    variance for what hardly occurs."""
    mean = squares.mean(dim=1)
    variances = mean.repeat(len(shares), 1)
    prior = _PRIOR * shares.shape[1]
    for _ in range(_ROUNDS):
        expected = (variances.T @ shares).clamp_min(1e-6)
        raised = shares @ (squares / expected**2).T + prior * mean / variances**2
        lowered = shares @ (1 / expected).T + prior / variances
        variances = (variances * (raised / lowered).sqrt()).clamp_min(1e-4)
    return variances


class _Sums:
    """Sums over cells, for means and deviations of cells and of their details."""

    def __init__(self) -> None:
        self.count, self.cells, self.squares, self.details = 0, 0.0, 0.0, 0.0

    def add(self, cells: Tensor, details: Tensor) -> None:
        cells, details = cells.double(), details.double()
        self.count += cells.shape[1]
        self.cells = self.cells + cells.sum(dim=1)
        self.squares = self.squares + cells.square().sum(dim=1)
        self.details = self.details + details.square().sum(dim=2)

    def fill(self, level: CascadeLevel) -> None:
        mean = self.cells / self.count
        level.mean.copy_(mean)
        level.deviation.copy_((self.squares / self.count - mean**2).clamp_min(1e-12).sqrt())
        if not level.first:
            level.detail_deviation.copy_((self.details / self.count).clamp_min(1e-12).sqrt())


def _split_to_cells(images: np.ndarray, labels: np.ndarray) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """By a cell's side in voxels: the cells' means (C, d, h, w), their details (7, C, d, h, w), and where there is
    brain (d, h, w)."""
    image, inside = torch.from_numpy(images), torch.from_numpy(labels > 0)
    made = {}
    for cell in (2, 4):
        image, details = split(image, inside)
        inside = halve_mask(inside)
        made[cell] = image, details, inside
    return made


def _learn_spreads(
    cascade: Cascade, brains: Callable[[], Iterator[Brain]], scheme: LabelScheme, tables: Tables
) -> None:
    table = np.zeros(256, np.uint8)
    table[list(scheme.values)] = np.arange(1, len(scheme.values) + 1)
    generator = torch.Generator().manual_seed(0)
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in cascade.levels]
    for index, (images, labels) in enumerate(brains()):
        indices = torch.from_numpy(table[labels])
        values = tables.appearances[index]
        weights = tables.color_weights[index]
        colors = (weights[..., :-1] @ values + weights[..., -1]).clamp(-1, 1)
        of_cells = _split_to_cells(images, labels)
        for level, kept in zip(cascade.levels, found, strict=True):
            cells, details, inside = of_cells[level.cell]
            fractions = label_fractions(indices, level.labels, level.cell // 2)
            bands = level.bands_of(cells, details)
            chosen = torch.nonzero(inside.flatten()).flatten()
            chosen = chosen[torch.randperm(len(chosen), generator=generator)[:_CELLS]]
            parts = (level.cell_shares(fractions), bands, level.painted(fractions, colors))
            kept.append(tuple(part.flatten(1)[:, chosen] for part in parts))
    for level, kept in zip(cascade.levels, found, strict=True):
        _fit_spread(level, kept, tables.appearances)


def _fit_spread(level: CascadeLevel, found: list[tuple[Tensor, Tensor, Tensor]], appearances: Tensor) -> None:
    """From the ``found`` (shares, bands, painted bands) of each brain: the painted share, and variances and their
    regression in turns, each given the other."""
    product = sum((bands * painted).sum(dim=1) for _, bands, painted in found)
    energy = sum(painted.square().sum(dim=1) for _, _, painted in found)
    share = (product / energy.clamp_min(1e-6)).clamp(0, 1)
    if level.first:
        share.fill_(1)  # the means are the look itself
    level.painted_share.copy_(share)
    shares = torch.cat([part for part, _, _ in found], dim=1)
    squares = [(bands - share[:, None] * painted).square() for _, bands, painted in found]
    factors = torch.ones(len(found), level.bands)
    for _ in range(3):
        scaled = torch.cat([part / factor[:, None] for part, factor in zip(squares, factors, strict=True)], dim=1)
        variances = mixture_variances(shares, scaled)
        expected = torch.stack([(variances.T @ part).mean(dim=1) for part, _, _ in found])
        logarithms = (torch.stack([part.mean(dim=1) for part in squares]) / expected).clamp_min(1e-6).log()
        scales = [_feature_scale(level.channels, band % level.channels) for band in range(level.bands)]
        weights = torch.stack(
            [
                _ridge(appearances, logarithms[:, band], scale, penalty=_VARIANCE_PENALTY)
                for band, scale in enumerate(scales)
            ]
        )
        factors = (appearances @ weights[:, :-1].T + weights[:, -1]).exp()
    level.variances.copy_(variances)
    level.variance_weights.copy_(weights)


def _feature_scale(channels: int, channel: int) -> Tensor:
    """(A,): how much each feature counts for the image of ``channel``."""
    scale = torch.full((channels, len(FEATURES)), _OTHER_MODALITY)
    scale[channel] = 1.0
    scale[channel, _MOMENTS:] = _OTHER_FEATURE
    return scale.flatten()


def _ridge(features: Tensor, targets: Tensor, scale: Tensor, *, penalty: float) -> Tensor:
    """(A + 1,): weights of ``features`` (n, A) and a constant, which is not penalized, for ``targets`` (n,)."""
    x, y = (features * scale).double(), targets.double()
    middle = x.mean(dim=0)
    centered = x - middle
    gram = centered.T @ centered + penalty * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, centered.T @ (y - y.mean())) * scale
    return torch.cat([weights, (y.mean() - features.double().mean(dim=0) @ weights)[None]]).float()
