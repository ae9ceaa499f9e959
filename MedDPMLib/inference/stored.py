"""Which numbers do files and volume nodes hold? Non-negative integers of 16 bits, background 0, as scanners give.

A model's intensities run from -1 to 1, and in Python they stay so. Viewers expect otherwise: presets of volume
rendering, thresholds and windows take 0 for air. So what is written or shown is mapped by a line, which the record
states as ``intensities``: intensity = slope * stored + intercept. It does not stand in the header of a NIfTI file,
because readers would apply it. Outside the mask's brain, where a network leaves faint values, exactly 0 is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume

#: The stored value of the highest intensity: the presets of 3D Slicer for MRI end about here.
HIGHEST = 1000


def stored_as(intensity_range: tuple[float, float]) -> dict[str, Any]:
    """The line from stored values to the intensities of a model whose card says ``intensity_range``, and what is stored
    outside the mask's brain."""
    low, high = intensity_range
    return {"type": "int16", "slope": (high - low) / HIGHEST, "intercept": float(low), "outside_mask": 0}


def to_stored(volume: Volume, line: Mapping[str, Any], brain: np.ndarray) -> Volume:
    """``volume`` as it is written: int16, 0 for the lowest intensity and what lies below it, and outside ``brain``
    (boolean, the axes of ``volume``; :func:`MedDPMLib.masks.brain_area.labeled_area`)."""
    scaled = (volume.array - np.float32(line["intercept"])) * np.float32(1 / line["slope"])
    stored = np.clip(np.rint(scaled, out=scaled), 0, np.iinfo(np.int16).max, out=scaled).astype(np.int16)
    stored[~brain] = 0
    return Volume(stored, volume.geometry, volume.notes)


def from_stored(volume: Volume, record: Mapping[str, Any]) -> Volume:
    """The intensities, float32, of a ``volume`` that was written with ``record``; up to half a slope.

    Files of version 0.1 hold the intensities themselves, which are returned as they are. Raises :class:`MedDPMError`
    for a damaged record.
    """
    line = record.get("intensities")
    if line is None or volume.array.dtype.kind == "f":
        return volume
    try:
        slope, intercept = float(line["slope"]), float(line["intercept"])
    except (TypeError, KeyError, ValueError, OverflowError):
        slope = intercept = np.nan
    if not np.isfinite([slope, intercept]).all():
        raise MedDPMError(
            'the "intensities" of its record are damaged: take the record that was written with the volume'
        )
    array = volume.array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return Volume(array, volume.geometry, volume.notes)
