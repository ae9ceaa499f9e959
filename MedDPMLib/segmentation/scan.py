"""Can this scan be segmented, and how does the network see it?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid, extent
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume

#: Where a scan's voxels lie for the network: along the patient's axes.
ORIENTATION = "LPS"

#: Of the values that are no background, these percentiles become 0 and 1.
_PERCENTILES = (1.0, 99.5)
#: The same for a modality that is known by name, as :mod:`MedDPMLib.imaging.normalize` has them.
_NAMED_PERCENTILES = (0.5, 99.5)
#: What is brighter or darker than these counts as them.
_LOWEST, _HIGHEST = 0.0, 1.3

#: A background of at most this value, where it is the most common one, is the air of a CT in Hounsfield units.
_AIR_OF_CT = -900.0

#: A head is at least this long in each direction (mm); the network's grid at most that, centered on the foreground.
_SHORTEST, _LONGEST = 60.0, 256.0
#: Slices farther apart (mm) are no volume of a brain; farther than the second, the result is coarse.
_FARTHEST, _COARSE = 12.0, 3.5

#: Room around the foreground in the network's grid, mm.
_MARGIN = 6.0

#: Part of the faces that is background at least where it is one value, as after skull-stripping.
_CLEAR = 0.5
#: Intensities closer to the background than this part of the range are background.
_TOLERANCE = 1e-3

#: The foregrounds of two scans of one patient overlap by this part of the smaller at least.
_COMMON = 0.5


@dataclass(frozen=True)
class Scan:
    """A ``volume`` (k, j, i) called ``name`` for messages, ``modality`` if it is known.

    ``foreground`` (k, j, i) is where it is not background; ``clear``, whether the background is one value.
    """

    name: str
    volume: Volume
    modality: str | None
    foreground: np.ndarray
    clear: bool
    notes: tuple[str, ...]


def examine(volume: Volume, name: str, modality: str | None = None) -> Scan:
    """The scan in ``volume``, if it may be one of a brain; :class:`MedDPMError` says why it cannot be."""
    geometry = volume.geometry
    lengths = np.array(geometry.size) * geometry.spacing
    if geometry.spacing.max() > _FARTHEST or lengths.min() < _SHORTEST:
        sides = " x ".join(f"{length:.3g}" for length in lengths)
        raise MedDPMError(
            f"{name} covers {sides} mm with {' x '.join(map(str, geometry.size))} voxels, which is not a volume of a"
            " whole brain: a 3-D scan, or a stack of slices through the whole head, is needed"
        )
    array = volume.array.astype(np.float32, copy=False)
    faces = np.concatenate([array.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    background = float(values[counts.argmax()])
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise MedDPMError(f"{name} is empty (all its values are {low:g}): a scan of a brain is needed")
    if background <= _AIR_OF_CT and high > -background / 2:
        raise MedDPMError(
            f"{name} looks like a CT (its air is {background:g} Hounsfield units): only MRI can be segmented"
        )
    clear = bool(np.mean(np.abs(faces - background) <= _TOLERANCE * (high - low)) >= _CLEAR)
    notes = list(volume.notes)
    if not clear:
        background = float(np.percentile(faces, 5))
    if clear and background > np.median(array[np.abs(array - background) > _TOLERANCE * (high - low)]):
        array, notes = -array, [*notes, f"{name} has a bright background: its intensities were inverted"]
        background = -background
    distance = np.abs(array - background)
    foreground = distance > (_TOLERANCE if clear else 0.1) * float(np.percentile(distance, 99.5))
    if np.count_nonzero(foreground) * geometry.voxel_volume < 1e5:
        raise MedDPMError(f"{name} shows less than 100 ml of anything: a scan of a brain is needed")
    if geometry.spacing.max() > _COARSE:
        notes.append(
            f"{name} has voxels of {' x '.join(f'{mm:.3g}' for mm in geometry.spacing)} mm: borders across thick slices"
            " are estimates"
        )
    shifted = Volume((array - background).astype(np.float32), geometry)
    return Scan(name, shifted, modality, foreground, clear, tuple(notes))


def network_geometry(scan: Scan, spacing: float, multiple: int) -> Geometry:
    """The grid of ``spacing`` mm along the patient's axes around the foreground of ``scan``; sides are multiples of
    ``multiple``. Where the scan's own voxels lie on such a grid, it is that one."""
    low, high = extent(scan.foreground, scan.volume.geometry)
    sides = np.minimum(high - low + 2 * _MARGIN, _LONGEST)
    # From the top: where a head is longer than the grid, it is the neck that is left out.
    center = (low + high) / 2
    center[2] = max(center[2], high[2] + _MARGIN - sides[2] / 2)
    size = (np.ceil(sides / spacing / multiple) * multiple).astype(int)
    return Grid(tuple(map(int, size)), (spacing,) * 3, ORIENTATION).place(scan.volume.geometry, center)


def check_same_space(scans: list[Scan], geometry: Geometry) -> None:
    """Raises :class:`MedDPMError` unless the foregrounds of all ``scans`` lie over that of the first."""
    first, *others = scans
    reference = _covered(first, geometry)
    for other in others:
        there = _covered(other, geometry)
        smaller = min(np.count_nonzero(reference), np.count_nonzero(there))
        if np.count_nonzero(reference & there) < _COMMON * smaller or not smaller:
            raise MedDPMError(
                f"{other.name} does not lie where {first.name} does: register the scans of one patient to each other"
                " first, or segment them one by one"
            )


def _covered(scan: Scan, geometry: Geometry) -> np.ndarray:
    share = resample_image(Volume(scan.foreground.astype(np.float32), scan.volume.geometry), geometry, fill=0.0)
    return share.array > 0.5


def seen(scan: Scan, geometry: Geometry) -> np.ndarray:
    """The intensities of ``scan`` on ``geometry`` as the network gets those of any contrast: float32, 0 outside."""
    return _scaled(scan, geometry, _PERCENTILES)


def seen_as_named(scan: Scan, geometry: Geometry) -> np.ndarray:
    """The same for a modality that is known by name."""
    return _scaled(scan, geometry, _NAMED_PERCENTILES).clip(max=1.0)


def _scaled(scan: Scan, geometry: Geometry, percentiles: tuple[float, float]) -> np.ndarray:
    low, high = np.percentile(scan.volume.array[scan.foreground], percentiles)
    placed = resample_image(scan.volume, geometry, fill=0.0).array
    inside = _covered(scan, geometry) if scan.clear else np.ones(geometry.shape, bool)
    scaled = np.clip((placed - low) / max(high - low, 1e-6), _LOWEST, _HIGHEST, dtype=np.float32)
    return np.where(inside, scaled, np.float32(0))
