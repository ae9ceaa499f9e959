"""How do the parts of a tumor lie in each other? What a swapped numbering cannot imitate.

Edema surrounds a tumor: more of its surface than of any other part's borders on what is not tumor. Necrosis lies
inside the enhancing rim. Held against 49 gliomas of BraTS 2017 to 2023, the first is true of every one (by 0.22 of the
surface at least), the second of two thirds; no tumor whose necrosis and rim are swapped passes for one of these.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from MedDPMLib.imaging.geometry import Geometry

#: The parts, as numbers in arrays of roles; 0 is everything that is no tumor, 4 any other part of one.
NECROSIS, EDEMA, RIM, OTHER = 1, 2, 3, 4

#: By how much more of its surface the outer part borders on what is no tumor.
_OUTER_MARGIN = 0.1

#: Part of the necrosis' surface that borders on the rim, and how much deeper in the core it lies, at least.
_ENCLOSED = 0.5
_DEEPER = 2.2


class Nesting(Enum):
    """Whether the parts lie as those of a glioma do, might, or cannot."""

    TYPICAL = 2
    POSSIBLE = 1
    WRONG = 0


def judge_nesting(roles: np.ndarray, geometry: Geometry) -> Nesting:
    """Whether a tumor whose parts are ``roles`` (k, j, i), uint8, is nested as gliomas are.

    Without all three of necrosis, edema and rim it is at best possible.
    """
    if not roles.any():
        return Nesting.POSSIBLE
    box = tuple(slice(max(0, found.min() - 1), found.max() + 2) for found in np.nonzero(roles))
    # A frame of no tumor, where the volume ends.
    roles = np.pad(roles[box], 1)
    borders = _borders(roles)
    surface = borders.sum(axis=1)
    there = [part for part in (NECROSIS, EDEMA, RIM) if surface[part]]
    outer = {part: borders[part, 0] / surface[part] for part in there}
    if EDEMA in there and any(outer[part] > outer[EDEMA] + _OUTER_MARGIN for part in there):
        return Nesting.WRONG
    if NECROSIS in there and RIM in there:
        if _encloses(roles, borders, geometry, NECROSIS, RIM):
            return Nesting.WRONG
        surrounded = EDEMA in there and all(
            outer[part] < outer[EDEMA] - _OUTER_MARGIN for part in there if part != EDEMA
        )
        if surrounded and _encloses(roles, borders, geometry, RIM, NECROSIS):
            return Nesting.TYPICAL
    return Nesting.POSSIBLE


def _encloses(roles: np.ndarray, borders: np.ndarray, geometry: Geometry, shell: int, inner: int) -> bool:
    """Whether ``inner`` lies inside ``shell``: it borders on it, and lies deeper in the two together."""
    if borders[inner, shell] < _ENCLOSED * borders[inner].sum():
        return False
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.isin(roles, (shell, inner)).astype(np.uint8))
    image.SetSpacing(geometry.spacing.tolist())
    depth = -SimpleITK.GetArrayFromImage(SimpleITK.SignedMaurerDistanceMap(image, False, False, True))
    return bool(depth[roles == inner].mean() > _DEEPER * depth[roles == shell].mean())


def _borders(roles: np.ndarray) -> np.ndarray:
    """How many faces of voxels lie between each two different ones of ``roles``; (5, 5), symmetric."""
    counts = np.zeros(25, np.int64)
    for axis in range(3):
        along = np.moveaxis(roles, axis, 0)
        one, other = along[:-1], along[1:]
        differ = one != other
        counts += np.bincount(one[differ] * 5 + other[differ], minlength=25)
    return counts.reshape(5, 5) + counts.reshape(5, 5).T
