"""How much detail of which size does an image have? Power spectra of its axial slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedDPMLib.errors import MedDPMError

#: Edges, in cycles a voxel, of the bands that are compared: at 1 mm detail of 50 to 12.5, 5, 2.9 and 2 mm.
BANDS = (0.02, 0.08, 0.2, 0.35, 0.5)

#: Over so many voxels from the brain's surface inward a slice fades in, so that its outline adds nothing to its
#: spectrum.
_FADE = 8

#: Slices with less brain, as a share of the largest slice, are left out: they are all surface.
_LEAST_AREA = 0.3


def band_power(image: np.ndarray, inside: np.ndarray, bands: Sequence[float] = BANDS) -> np.ndarray:
    """The mean power of ``image`` (D, H, W) in the axial slices (H, W), by band of radial frequency: (bands,) float64.

    ``inside`` (D, H, W) is the brain. Each slice is taken without its mean and times a window that rises from 0 at the
    brain's outline to 1 at a depth of 8 voxels (a squared sine), its power spectrum is divided by the window's energy,
    and averaged over the frequencies between two edges of ``bands`` (cycles a voxel, the lower one included) and over
    the slices that have at least 30 % of the brain area of the largest, weighed with their window's energy. White noise
    of variance v has the power v in every band. Raises :class:`MedDPMError` where no slice is thick enough.
    """
    from scipy.ndimage import distance_transform_edt

    if image.shape != inside.shape:
        raise MedDPMError(f"image and mask must have one shape, not {image.shape} and {inside.shape}")
    areas = inside.sum(axis=(1, 2))
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in image.shape[1:]), indexing="ij"))
    which = np.digitize(frequency.ravel(), bands) - 1
    counted = (which >= 0) & (which < len(bands) - 1)
    counts = np.bincount(which[counted], minlength=len(bands) - 1)
    power, energy = np.zeros(len(bands) - 1), 0.0
    for index in np.flatnonzero((areas > 0) & (areas >= _LEAST_AREA * areas.max())):
        # The array's own border ends the brain, too.
        depth = distance_transform_edt(np.pad(inside[index], 1))[1:-1, 1:-1]
        window = np.sin(np.clip(depth / _FADE, 0, 1) * np.pi / 2) ** 2
        if not window.any():
            continue
        slice_ = image[index].astype(np.float64)
        slice_ = (slice_ - (slice_ * window).sum() / window.sum()) * window
        spectrum = np.abs(np.fft.fft2(slice_)).ravel() ** 2
        power += np.bincount(which[counted], weights=spectrum[counted], minlength=len(bands) - 1)
        energy += (window**2).sum()
    if not energy:
        raise MedDPMError("the mask is empty: there is nothing to compare")
    return power / np.maximum(counts, 1) / energy
