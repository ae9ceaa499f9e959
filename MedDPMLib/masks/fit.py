"""How does a mask get onto the model's grid? Placed on what is labeled, never stretched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid, center_of, extent
from MedDPMLib.imaging.resample import resample_labels
from MedDPMLib.masks.brain_area import describe_volume
from MedDPMLib.masks.mask import Mask
from MedDPMLib.masks.size import odd_size
from MedDPMLib.masks.values import count_values

#: How far, in millimeters, the model's grid leaves the center of the labels to hold what would be cut off.
_LONGEST_SHIFT = 10.0

#: A mask of which the grid cuts off more than this part is not what the grid was made for.
_MOST_LOST = 0.05


@dataclass(frozen=True, eq=False)
class Fitted:
    """A mask on the model's grid: ``labels`` (D, H, W), uint8, on ``geometry``.

    ``outside`` says how many mm^3 of which label (by name) lie outside the grid and are cut off.
    """

    labels: np.ndarray
    geometry: Geometry
    outside: dict[str, float]
    notes: tuple[str, ...]


def fit(mask: Mask, grid: Grid) -> Fitted:
    """Places ``grid`` on the middle of all labels (:meth:`Grid.place`) and brings the labels there, never stretched.

    What is cut off and what is too small to survive is said in ``outside`` and ``notes``. The same mask and grid
    give the same object, computed once. Raises :class:`MedDPMError` if nothing is left, if more than
    :data:`_MOST_LOST` of it is cut off, or all of one tumor label.
    """
    if grid not in mask.fitted:
        mask.fitted[grid] = _fit(mask, grid)
    return mask.fitted[grid]


def _fit(mask: Mask, grid: Grid) -> Fitted:
    labels, geometry, scheme = mask.volume.array, mask.volume.geometry, mask.scheme
    foreground = labels != 0
    low, high = extent(foreground, geometry)
    center = grid.holding(center_of(foreground, geometry), low, high, _LONGEST_SHIFT)
    placed = grid.place(geometry, center)
    fitted = resample_labels(mask.volume, placed, scheme.priority).array
    name = mask.source or mask.name
    total, inside, left = count_values(labels), _count_inside(labels, geometry, placed), count_values(fitted)
    if not left[1:].any():
        sides = " x ".join(f"{n * s:g}" for n, s in zip(grid.size, grid.spacing, strict=True))
        raise MedDPMError(
            f"nothing of {name} is left on the model's grid of {sides} mm: {_why(mask, 'check its size and spacing')}"
        )
    outside, notes = {}, []
    for label in scheme.labels:
        cut = int(total[label.value] - inside[label.value])
        if cut:
            outside[label.name] = cut * geometry.voxel_volume
            notes.append(
                f"{label.name}: {describe_volume(outside[label.name])} ({100 * cut / total[label.value]:.3g} %)"
                " outside the model's grid, cut off"
            )
            if label.role == "tumor" and cut == total[label.value]:
                raise MedDPMError(
                    f"all of the {label.name.lower()} of {name} lies outside the model's grid:"
                    f" {_why(mask, 'check whether it belongs to this mask')}"
                )
        if inside[label.value] and not left[label.value]:
            notes.append(f"{label.name}: too small for the model's voxels, vanishes")
    lost = (total[1:] - inside[1:]).sum() / total[1:].sum()
    if lost > _MOST_LOST:
        raise MedDPMError(
            f"{100 * lost:.3g} % of {name} ({describe_volume(sum(outside.values()))}) lie outside the model's grid:"
            f" {_why(mask, 'check its spacing, or whether it holds more than the model shows')}"
        )
    return Fitted(fitted, placed, outside, tuple(notes))


def _why(mask: Mask, otherwise: str) -> str:
    return odd_size(mask.volume.array, mask.volume.geometry, mask.scheme) or otherwise


def _count_inside(labels: np.ndarray, geometry: Geometry, box: Geometry) -> np.ndarray:
    """How many voxels of each value of ``labels`` (uint8) have their center inside the voxels of ``box``."""
    matrix = box.ras_to_ijk @ geometry.ijk_to_ras
    i, j = np.arange(geometry.size[0])[None, :], np.arange(geometry.size[1])[:, None]
    counts = np.zeros(256, np.int64)
    for k, section in enumerate(labels):
        if not section.any():
            continue
        within = np.ones(section.shape, bool)
        for axis, length in enumerate(box.size):
            along = matrix[axis, 0] * i + matrix[axis, 1] * j + (matrix[axis, 2] * k + matrix[axis, 3])
            within &= (along > -0.5 - 1e-6) & (along < length - 0.5 + 1e-6)
        counts += np.bincount(section[within], minlength=256)
    return counts
