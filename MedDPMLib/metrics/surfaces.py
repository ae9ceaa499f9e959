"""How well does a segmented region agree with the true one? Overlap, and distance of the surfaces.

Where the region is missing in one of the two, or in both, no formula holds, and leaving such patients out would reward
a segmenter that finds nothing in difficult ones. They count as in the BraTS challenge (Baid et al. 2021,
arXiv 2107.02314): missing in both is perfect (Dice and IoU 1, distance 0), missing in one is the worst (Dice and IoU 0,
and the diagonal of the image as the distance, there 374 mm).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from MedDPMLib.metrics.overlap import dice
from MedDPMLib.runtime.packages import require


@dataclass(frozen=True)
class Agreement:
    """``dice`` and ``iou`` in [0, 1]; ``hd95``, the 95th percentile of the Hausdorff distance, in mm."""

    dice: float
    iou: float
    hd95: float


def agreement(found: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> Agreement:
    """Agreement of two boolean arrays (D, H, W) of one shape with voxels of ``spacing`` (i, j, k) mm.

    The distance is MONAI's: of the percentiles of both directions, from the surface voxels of one to the other's, the
    larger one.
    """
    there = bool(found.any()), bool(truth.any())
    if there == (False, False):
        return Agreement(1.0, 1.0, 0.0)
    overlap = dice(found, truth)
    if not all(there):
        lengths = [n * s for n, s in zip(truth.shape, reversed(spacing), strict=True)]
        return Agreement(0.0, 0.0, float(np.linalg.norm(lengths)))
    return Agreement(overlap, overlap / (2 - overlap), _hd95(found, truth, spacing))


def _hd95(found: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    require("the Hausdorff distance", "monai", "scipy")
    from monai.metrics import compute_hausdorff_distance

    pair = [torch.from_numpy(np.ascontiguousarray(one))[None, None] for one in (found, truth)]
    millimeters = [float(side) for side in reversed(spacing)]
    with warnings.catch_warnings():  # MONAI warns of its own calls
        warnings.simplefilter("ignore", FutureWarning)
        distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=millimeters)
    return float(distance)
