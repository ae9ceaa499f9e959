"""Is a synthetic brain a copy? Its distance to the nearest training brain against that of real brains never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Nearest:
    """The nearest of the training brains: its ``index`` and how far away it is (0 for a copy, about 1 for nothing
    alike)."""

    index: int
    distance: float


def coarse(image: np.ndarray, factor: int = 4) -> np.ndarray:
    """``image`` (C, D, H, W) averaged over blocks of ``factor`` voxels; sides are multiples of it."""
    c, *sides = image.shape
    d, h, w = (side // factor for side in sides)
    return image.reshape(c, d, factor, h, factor, w, factor).mean(axis=(2, 4, 6), dtype=np.float32)


def nearest(image: np.ndarray, training: Sequence[np.ndarray]) -> Nearest:
    """The nearest of ``training`` to ``image``; all (C, D, H, W) on one box, the background -1.

    The distance is the root mean square difference over all channels and voxels where either is brain, divided by the
    square root of the sum of both variances there: scale and place of noise do not matter, a copy has distance 0.
    Compare coarse images (:func:`coarse`): of two scans of one brain the noise differs.
    """
    distances = []
    for other in training:
        where = ((image > -1) | (other > -1)).any(axis=0)
        first, second = image[:, where].astype(np.float64), other[:, where].astype(np.float64)
        scale = np.sqrt(first.var() + second.var())
        distances.append(np.sqrt(((first - second) ** 2).mean()) / scale if scale else 0.0)
    index = int(np.argmin(distances))
    return Nearest(index, float(distances[index]))
