"""How do intensities become [-1, 1]?"""

from __future__ import annotations

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.moved import former_names

#: Intensities between these percentiles of the brain become [-1, 1].
_PERCENTILES = (0.5, 99.5)

#: ``percentiles`` is robust against single bright voxels; the others are what the published networks were trained with:
#: the BraTS network ``per-volume``, the whole-head network ``per-slice`` (along z, so that brightness steps from
#: slice to slice).
NORMALIZATIONS = ("percentiles", "per-volume", "per-slice")

__getattr__ = former_names(
    __name__,
    {"NORMALISATIONS": "NORMALIZATIONS", "normalise": "normalize", "normalise_onto": "normalize_onto"},
)


def normalize_onto(image: Volume, foreground: np.ndarray, geometry: Geometry, method: str) -> Volume:
    """``image`` at the voxels of ``geometry`` with intensities in [-1, 1], float32; ``method`` is one of
    :data:`NORMALIZATIONS`.

    ``foreground`` (k, j, i), boolean, is the brain (or head) on the image's own grid. Raises :class:`MedDPMError` for
    an image that is constant there.
    """
    if method == "percentiles":
        return resample_image(normalize(image, foreground), geometry, fill=-1.0)
    values = image.array[foreground]
    if values.min() == values.max():
        raise MedDPMError("it is constant where the labels are: it cannot be normalized")
    placed = resample_image(image, geometry, fill=float(image.array.min()))
    axes = (0, 1, 2) if method == "per-volume" else (1, 2)
    low = placed.array.min(axis=axes, keepdims=True)
    extent = placed.array.max(axis=axes, keepdims=True) - low
    # A slice without anything in it is background.
    scaled = (placed.array - low) / np.where(extent > 0, extent, 1) * 2 - 1
    return Volume(np.clip(scaled, -1, 1, dtype=np.float32), geometry)


def normalize(image: Volume, brain: np.ndarray) -> Volume:
    """``image`` with the brain's 0.5 to 99.5 percentiles at -1 and 1, clipped, and -1 outside ``brain``; float32."""
    values = image.array[brain].astype(np.float32)
    low, high = np.percentile(values, _PERCENTILES)
    if not high > low:
        raise MedDPMError("it is constant where the labels are: it cannot be normalized")
    array = np.full(image.array.shape, -1.0, np.float32)
    array[brain] = np.clip((values - low) / (high - low), 0, 1) * 2 - 1
    return Volume(array, image.geometry)
