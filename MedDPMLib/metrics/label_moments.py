"""What is the mean intensity of each label, how far does it spread, and is that what real brains have?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: A label of fewer voxels has no mean that means anything.
LEAST_VOXELS = 100


@dataclass(frozen=True)
class LabelMoments:
    """By label (index 0 is ``values[0]``): ``voxels``, ``mean`` and ``sd``, each (L,) float64. NaN where a label has
    fewer than :data:`LEAST_VOXELS` voxels."""

    values: tuple[int, ...]
    voxels: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


def label_moments(image: np.ndarray, labels: np.ndarray, values: Sequence[int]) -> LabelMoments:
    """The moments of ``image`` (D, H, W) in each of ``values`` of ``labels`` (D, H, W, whole numbers, 0 to 255)."""
    flat = labels.ravel()
    counts = np.bincount(flat, minlength=256)[list(values)]
    sums = np.bincount(flat, weights=image.ravel(), minlength=256)[list(values)]
    enough = counts >= LEAST_VOXELS
    mean = np.where(enough, sums / np.maximum(counts, 1), np.nan)
    table = np.zeros(256)
    table[list(values)] = np.nan_to_num(mean)
    residual = image.ravel() - table[flat]
    squares = np.bincount(flat, weights=residual**2, minlength=256)[list(values)]
    sd = np.where(enough, np.sqrt(squares / np.maximum(counts, 1)), np.nan)
    return LabelMoments(tuple(values), counts, mean, sd)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's coefficient of two (L,) over the labels that both have, each counted once whatever its size; NaN where
    fewer than three are left or all have one value."""
    both = np.isfinite(first) & np.isfinite(second)
    pair = np.stack([first[both], second[both]])
    if pair.shape[1] < 3 or (np.ptp(pair, axis=1) < 1e-6).any():
        return float("nan")
    return float(np.corrcoef(pair)[0, 1])


def share_in_range(means: np.ndarray, real: np.ndarray) -> float:
    """The share of ``means`` (L,) that lie between the least and the greatest of ``real`` (brains, L), of the labels
    that have a mean here and in at least one real brain."""
    known = np.isfinite(means) & np.isfinite(real).any(axis=0)
    if not known.any():
        return float("nan")
    low, high = np.nanmin(real[:, known], axis=0), np.nanmax(real[:, known], axis=0)
    return float(((means[known] >= low) & (means[known] <= high)).mean())


def median_colors(real: np.ndarray) -> np.ndarray:
    """The median over ``real`` (brains, L) of each label's mean, (L,): what a mask that is merely colored would show.

    It knows the mean look of every tissue and nothing else: what a network has to be better than. NaN where no brain
    has a label.
    """
    known = np.isfinite(real).any(axis=0)
    colors = np.full(real.shape[1:], np.nan)
    colors[known] = np.nanmedian(real[:, known], axis=0)
    return colors
