"""Where in a brain has a tumor room?"""

from __future__ import annotations

import numpy as np

from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.midline import Midline
from MedDPMLib.masks.schemes import LabelScheme

#: This share of a tumor has to find room inside the brain; of :data:`_TRIES` places the first where it does is taken.
_LEAST_KEPT = 0.85
_TRIES = 200

#: Where a tumor is moved to, at most this share of it lies over fluid, which it would enclose.
_MOST_FLUID = 0.03

#: Pieces of a tumor with less than this share of it, cut off by the surface of brain or ventricles, are left out.
_LEAST_PIECE = 0.02


class Room:
    """Where in ``anatomy`` a tumor may be: inside, not in fluid, and with a ``midline`` on one side."""

    def __init__(self, anatomy: Volume, scheme: LabelScheme, midline: Midline | None) -> None:
        self._anatomy, self._midline = anatomy, midline
        self._fluid = np.isin(anatomy.array, [label.value for label in scheme.of_tissue("fluid")])
        self._free = (anatomy.array > 0) & ~self._fluid
        white = np.isin(anatomy.array, [label.value for label in scheme.of_tissue("white matter")])
        self._starts = np.flatnonzero(white if white.any() else self._free)

    def _draw(self, random: np.random.Generator) -> np.ndarray:
        """A random voxel (i, j, k) for the middle of a tumor."""
        voxel = self._starts[int(random.integers(len(self._starts)))]
        return np.array(np.unravel_index(voxel, self._free.shape))[::-1]

    def _within(self, place: Geometry, low: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, tuple, tuple]:
        """What is free of the box ``place``, which begins at index ``low``; and the slices of both that overlap."""
        size = np.array(self._anatomy.geometry.size)
        first, last = np.maximum(low, 0), np.minimum(low + place.size, size)
        here = tuple(slice(int(a), int(max(a, b))) for a, b in zip(first[::-1], last[::-1], strict=True))
        there = tuple(
            slice(int(a - o), int(max(a, b) - o)) for a, b, o in zip(first[::-1], last[::-1], low[::-1], strict=True)
        )
        free = np.zeros(place.shape, bool)
        free[there] = self._free[here]
        if self._midline is not None:
            k, j, i = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in place.shape), indexing="ij", sparse=True)
            along = self._midline.normal @ place.ijk_to_ras[:3, :3]
            side = along[0] * i + along[1] * j + along[2] * k + (self._midline.side(place.to_ras(np.zeros(3))))
            free &= side * np.sign(self._midline.side(center) or 1) >= 0
        return free, here, there

    def placed(
        self,
        shape: np.ndarray,
        place: Geometry,
        first: np.ndarray,
        start: np.ndarray,
        places: np.random.Generator | None,
    ) -> tuple[Volume | None, np.ndarray, float]:
        """The anatomy with a tumor, its middle (RAS), and which share of it had room; no labels if it has none.

        The labels ``shape`` of the tumor around ``start`` (RAS) lie on ``place``, a box of the anatomy's lattice that
        begins at the index ``first``. Tried is ``start``, or with ``places`` random ones instead, each a whole number
        of voxels away.
        """
        geometry, best = self._anatomy.geometry, 0.0
        total = np.count_nonzero(shape)
        for _ in range(1 if places is None or not total else _TRIES):
            shift = (
                np.zeros(3, int) if places is None else self._draw(places) - np.rint(geometry.to_ijk(start)).astype(int)
            )
            low = first + shift
            center = geometry.to_ras(geometry.to_ijk(start) + shift)
            free, here, there = self._within(geometry.cut(low, low + place.size), low, center)
            kept = np.count_nonzero(free & (shape > 0)) / total if total else 0.0
            best = max(best, kept)
            enclosed = np.count_nonzero((shape[there] > 0) & self._fluid[here]) if places is not None else 0
            if kept >= _LEAST_KEPT and enclosed <= _MOST_FLUID * total:
                labels = self._anatomy.array.copy()
                part = _without_crumbs(np.where(free, shape, 0))[there]
                labels[here][part > 0] = part[part > 0]
                return Volume(labels, geometry), center, kept
        return None, start, best


def _without_crumbs(tumor: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    pieces, count = label(tumor > 0)
    if count < 2:
        return tumor
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.where((sizes >= _LEAST_PIECE * sizes.sum())[pieces], tumor, 0)
