"""Is this the size of a brain? If not, which unit or spacing would make it one?"""

from __future__ import annotations

import numpy as np

from MedDPMLib.imaging.geometry import Geometry, extent
from MedDPMLib.masks.numberings import shows_brain
from MedDPMLib.masks.schemes import LabelScheme

#: Longest side, in millimeters, that a brain or head can have; outside of this the spacing is doubted.
_PLAUSIBLE_EXTENT = (60.0, 300.0)
_SMALLEST = 2.0

#: Below it, and above what it goes into once, an extent is no length that somebody measured.
_SMALLEST_MEASURED = 1e-6

#: Longest side of a brain that units and spacings are judged by, from a child's to the longest, and a usual one.
_BRAIN_EXTENT = (120.0, 240.0)
_USUAL_EXTENT = 170.0

#: What a length was measured in that counts as so many millimeters.
_UNITS = {1000.0: "meters", 10.0: "centimeters", 0.001: "micrometers"}


def odd_size(labels: np.ndarray, geometry: Geometry, scheme: LabelScheme) -> str | None:
    """What is odd about the size of all that is labeled (k, j, i), and what would explain it; None if nothing is, or
    if ``scheme`` shows no brain."""
    if not shows_brain(scheme):
        return None
    low, high = extent(labels != 0, geometry)
    sides = high - low
    if _PLAUSIBLE_EXTENT[0] <= max(sides) <= _PLAUSIBLE_EXTENT[1]:
        return None
    described = " x ".join(f"{side:.3g}" for side in sides)
    return f"the mask measures {described} mm, which is not the size of a brain: {_explanation(max(sides), geometry)}"


def is_absurd(labels: np.ndarray, geometry: Geometry, scheme: LabelScheme) -> bool:
    """Whether nothing in a head, not even a small tumor, has the size of what is labeled in a ``scheme`` of one."""
    if not shows_brain(scheme):
        return False
    low, high = extent(labels != 0, geometry)
    return not _SMALLEST <= max(high - low) <= _PLAUSIBLE_EXTENT[1]


def _explanation(longest: float, geometry: Geometry) -> str:
    for factor, unit in _UNITS.items():
        if _BRAIN_EXTENT[0] <= longest * factor <= _BRAIN_EXTENT[1]:
            return f"its header seems to give {unit}, read as millimeters: correct the spacing in it"
    spacing = " x ".join(f"{step:.3g}" for step in geometry.spacing)
    if not _SMALLEST_MEASURED < longest < 1 / _SMALLEST_MEASURED:
        return f"check the spacing in its header, {spacing} mm"
    wanted = " x ".join(f"{step * _USUAL_EXTENT / longest:.1g}" for step in geometry.spacing)
    return f"check the spacing in its header, {spacing} mm; about {wanted} mm would make it one"
