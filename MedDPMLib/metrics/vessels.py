"""Are vessels continuous? Tubes that are brighter than their surroundings, their centerlines and their topology.

Exploratory: on contrast-enhanced T1 a tube can be a vessel, and the rim of a tumor or a fold of the meninges, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError

#: Radii (voxels) of the tubes that are looked for.
SCALES = (1.0, 1.5, 2.0)

#: A piece of a vessel has at least so many voxels.
_LEAST_PIECE = 10


@dataclass(frozen=True)
class Topology:
    """Betti numbers: ``pieces`` (components), ``loops`` and ``cavities``; with 26-connected foreground."""

    pieces: int
    loops: int
    cavities: int


def vesselness(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """How much a voxel (D, H, W) looks like part of a bright tube, 0 to 1, 0 outside (Frangi et al. 1998), float32.

    scikit-image's, on the box of ``inside``; outside the image is continued by the mean of what is inside, so that the
    brain's surface is no ridge.
    """
    from skimage.filters import frangi

    from MedDPMLib.metrics.similarity import bounding_box

    box = bounding_box(inside)
    within = inside[box]
    part = np.where(within, image[box], image[box][within].mean()).astype(np.float64)
    found = np.zeros(image.shape, np.float32)
    # The background's constant is fixed, so that the same tube has the same value in every image of one range.
    found[box] = np.where(within, frangi(part, sigmas=SCALES, black_ridges=False, gamma=0.25), 0)
    return found


def vessels(vesselness: np.ndarray, threshold: float) -> np.ndarray:
    """The voxels of at least ``threshold``, without pieces of fewer than 10 voxels."""
    from scipy.ndimage import label

    pieces, _ = label(vesselness >= threshold, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= _LEAST_PIECE)[pieces]


def centerline_dice(first: np.ndarray, second: np.ndarray) -> float:
    """clDice of two boolean (D, H, W) (Shit et al. 2021, arXiv 2003.07311): the harmonic mean of the shares of either's
    centerline that lies in the other. 1 for two empty ones, 0 if one is empty."""
    from skimage.morphology import skeletonize

    if first.shape != second.shape:
        raise MedDPMError(f"vessels of one shape are needed, not {first.shape} and {second.shape}")
    if not first.any() or not second.any():
        return float(first.any() == second.any())
    lines = [skeletonize(one) > 0 for one in (first, second)]
    precision, sensitivity = (float(other[line].mean()) for line, other in zip(lines, (second, first), strict=True))
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def topology(vessels: np.ndarray) -> Topology:
    """The Betti numbers of a boolean (D, H, W): from components of it and of its surroundings, and Euler's number."""
    from scipy.ndimage import label
    from skimage.measure import euler_number

    padded = np.pad(vessels, 1)
    pieces = label(padded, structure=np.ones((3, 3, 3)))[1]
    cavities = label(~padded)[1] - 1
    euler = int(euler_number(padded, connectivity=3))
    return Topology(pieces, pieces + cavities - euler, cavities)
