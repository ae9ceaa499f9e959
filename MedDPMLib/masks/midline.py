"""Where is the plane between the two sides of a brain? Where its labels are most alike with their reflection."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import center_of
from MedDPMLib.imaging.volume import Volume

#: Voxels of the brain that are reflected.
_POINTS = 6000

#: How far (mm, degrees) the plane is looked for from that through the brain's middle, and in which steps: each round
#: looks around the best of the round before.
_ROUNDS = ((9.0, 1.5, 8.0, 4.0), (1.5, 0.75, 4.0, 2.0), (0.75, 0.375, 1.0, 0.5))


@dataclass(frozen=True)
class Midline:
    """The plane of the points p (RAS, mm) with ``normal`` . p = ``offset``; ``normal`` points to the right."""

    normal: np.ndarray
    offset: float

    def side(self, ras: np.ndarray) -> np.ndarray:
        """How far (mm) the points (..., 3) lie to the right of the plane; negative on the left."""
        return np.asarray(ras) @ self.normal - self.offset

    def reflected(self, ras: np.ndarray) -> np.ndarray:
        """The points (..., 3) on the other side."""
        return np.asarray(ras) - 2 * self.side(ras)[..., None] * self.normal


def find_midline(labels: Volume) -> Midline:
    """The plane in which ``labels`` (0 is background, left and right share their values), reflected, are most alike.

    It is at most 9 mm from the middle of the brain and turned by at most 8 degrees about each axis, before refinement
    that adds a few. Raises :class:`MedDPMError` for an empty mask.
    """
    inside = labels.array > 0
    if not inside.any():
        raise MedDPMError("the mask is empty: it has no midline")
    center = center_of(inside, labels.geometry)
    filled = np.flatnonzero(inside)
    random = np.random.default_rng(0)
    chosen = filled[random.integers(len(filled), size=_POINTS)]
    # Not the middles of voxels, which a plane along the axes would map onto each other: it would score too well.
    ijk = np.stack(np.unravel_index(chosen, inside.shape)[::-1], axis=1) + random.uniform(-0.5, 0.5, (_POINTS, 3))
    ras = labels.geometry.to_ras(ijk)
    values = labels.array.ravel()[chosen]
    best = (-1.0, (0.0, 0.0, 0.0))
    for reach, step, turn, turn_step in _ROUNDS:
        around = best[1]
        axes = [
            np.arange(-r, r + s / 2, s) + at
            for r, s, at in zip((reach, turn, turn), (step, turn_step, turn_step), around, strict=True)
        ]
        for place in product(*axes):
            plane = _plane(center, *place)
            score = float((labels_at(labels, plane.reflected(ras)) == values).mean())
            # Of equal planes the one least turned and moved.
            best = max(best, (score, place), key=lambda one: (one[0], -sum(map(abs, one[1]))))
    return _plane(center, *best[1])


def _plane(center: np.ndarray, distance: float, yaw: float, roll: float) -> Midline:
    """The sagittal plane through ``center``, turned about S and A (degrees), and moved to the right (mm)."""
    yaw, roll = np.deg2rad([yaw, roll])
    normal = np.array([np.cos(yaw) * np.cos(roll), np.sin(yaw) * np.cos(roll), np.sin(roll)])
    return Midline(normal, float(normal @ center + distance))


def labels_at(labels: Volume, ras: np.ndarray) -> np.ndarray:
    """The labels at the voxels nearest to ``ras`` (n, 3); 0 outside."""
    ijk = np.rint(labels.geometry.to_ijk(ras)).astype(int)
    within = ((ijk >= 0) & (ijk < labels.geometry.size)).all(axis=1)
    found = np.zeros(len(ras), labels.array.dtype)
    i, j, k = ijk[within].T
    found[within] = labels.array[k, j, i]
    return found
