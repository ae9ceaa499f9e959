"""Where is the brain? In a skull-stripped image, and around a tumor that hides it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.resample import resample_labels
from MedDPMLib.imaging.volume import Volume

#: Part of the faces of a skull-stripped image that is background at least.
_LEAST_BACKGROUND = 0.5

#: Intensities closer to the background's than this part of the range are background too.
_BACKGROUND_TOLERANCE = 1e-3


def brain_area(image: str | os.PathLike | Volume, geometry: Geometry) -> tuple[np.ndarray, str]:
    """The foreground of a skull-stripped ``image`` (file or volume, any geometry) at the voxels of ``geometry``.

    Returns a boolean array (k, j, i) and a sentence that says what was found. Raises :class:`MedDPMError` for
    an image that is empty, is not skull-stripped, or lies elsewhere than ``geometry``.
    """
    name = "the image of the brain" if isinstance(image, Volume) else str(Path(image))
    volume = image if isinstance(image, Volume) else read_volume(image)
    found = Volume(_foreground(volume.array, name), volume.geometry)
    area = resample_labels(found, geometry, [1]).array.astype(bool)
    total = np.count_nonzero(found.array) * volume.geometry.voxel_volume
    covered = np.count_nonzero(area) * geometry.voxel_volume
    if not covered:
        raise MedDPMError(
            f"the brain of {name} and the mask do not overlap: use an image of the same patient and space"
        )
    note = f"brain area of {describe_volume(total)} taken from {name}"
    if covered < 0.98 * total:
        note += f", {100 * covered / total:.0f} % of it within the mask's volume"
    return area, note


def _foreground(array: np.ndarray, name: str) -> np.ndarray:
    """Where ``array`` differs from its background, holes filled, as uint8.

    The background is the value that is most common on the six faces, whatever it is: 0, -1, -1024.
    """
    import SimpleITK

    faces = np.concatenate([array.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    background = values[counts.argmax()].astype(np.float64)
    difference = np.abs(array - background)
    tolerance = _BACKGROUND_TOLERANCE * difference.max()
    if not tolerance:
        raise MedDPMError(f"{name} is empty (all its values are {background:g}): use an image of the brain")
    if np.mean(np.abs(faces - background) <= tolerance) < _LEAST_BACKGROUND:
        raise MedDPMError(f"{name} has no empty background around the brain: use a skull-stripped image")
    foreground = SimpleITK.GetImageFromArray((difference > tolerance).astype(np.uint8))
    return SimpleITK.GetArrayFromImage(SimpleITK.BinaryFillhole(foreground, False, 1.0))


def labeled_area(labels: np.ndarray) -> np.ndarray:
    """Where a mask's ``labels`` (k, j, i) have any label, and the holes that the labels enclose; boolean."""
    import SimpleITK

    area = labels != 0
    if not area.any():
        return area
    box = tuple(slice(found.min(), found.max() + 1) for found in map(np.flatnonzero, _profiles(area)))
    cut = SimpleITK.GetImageFromArray(area[box].astype(np.uint8))
    area[box] = SimpleITK.GetArrayFromImage(SimpleITK.BinaryFillhole(cut, False, 1.0)) != 0
    return area


def _profiles(area: np.ndarray) -> list[np.ndarray]:
    """Along each axis whether anything of ``area`` is there."""
    return [area.any(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]


def outside_brain(tumor: np.ndarray, labels: np.ndarray) -> int:
    """How many voxels of ``tumor`` (boolean) lie outside the brain of a mask's ``labels``, both (k, j, i).

    The tumor's labels hide the brain under it, so each connected piece is judged by its surface: it is in
    the brain if it borders on brain rather than on background. A piece that grows out of the brain's
    surface counts as inside as long as that holds for most of it.
    """
    import SimpleITK

    if not tumor.any():
        return 0
    box = tuple(slice(max(0, found.min() - 1), found.max() + 2) for found in np.nonzero(tumor))
    # A frame of neither: what lies beyond the volume speaks for nothing.
    background = np.pad(labels[box] == 0, 1)
    brain = np.pad((labels[box] != 0) & ~tumor[box], 1)
    image = SimpleITK.GetImageFromArray(np.pad(tumor[box], 1).astype(np.uint8))
    pieces = SimpleITK.GetArrayFromImage(SimpleITK.ConnectedComponent(image, True))
    sizes = np.bincount(pieces.ravel())
    on_background, on_brain = np.zeros((2, len(sizes)), np.int64)
    for axis in range(3):
        for step in (1, -1):
            # What wraps round comes from the frame.
            on_background += np.bincount(pieces[np.roll(background, step, axis)], minlength=len(sizes))
            on_brain += np.bincount(pieces[np.roll(brain, step, axis)], minlength=len(sizes))
    strays = on_background > on_brain
    strays[0] = False
    return int(sizes[strays].sum())


def describe_volume(cubic_millimeters: float) -> str:
    """For messages: "1.3 l", "25 ml" or "3 mm^3"."""
    for unit, size in ("l", 1e6), ("ml", 1e3):
        if cubic_millimeters >= size:
            return f"{cubic_millimeters / size:.3g} {unit}"
    return f"{cubic_millimeters:.3g} mm^3"
