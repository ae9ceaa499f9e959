"""How alike are images? Figures for a pair and for a set of volumes on one grid.

Images are (D, H, W) with intensities in [-1, 1]; ``inside`` is a mask (D, H, W) of the voxels that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.packages import require

#: Exponents of the scales, the finest first (Wang, Simoncelli and Bovik 2003, Asilomar).
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Side of the Gaussian window. The usual 11 would need 176 voxels along every axis for five scales.
_WINDOW = 7


@dataclass(frozen=True)
class Likeness:
    """How alike two images of one brain are: ``mae`` and ``mse`` over its voxels, ``ms_ssim`` over its box."""

    mae: float
    mse: float
    ms_ssim: float


#: The likeness of an image with itself.
SAME = Likeness(mae=0.0, mse=0.0, ms_ssim=1.0)


def likeness(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> Likeness:
    """Compares two images of one brain, ``inside``. The surroundings, alike in all images, do not count."""
    difference = first[inside].astype(np.float64) - second[inside]
    box = bounding_box(inside)
    return Likeness(float(np.abs(difference).mean()), float((difference**2).mean()), ms_ssim(first[box], second[box]))


def ms_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003), 0 to 1, where 1 is the same image.

    The images are (D, H, W) in [-1, 1] and are compared in [0, 1]: the luminance term takes intensities for amounts
    of light, and below zero it would turn negative where the means of two windows differ in sign.

    MONAI's, with a Gaussian window of 7 voxels, and as many of the five scales as the shortest side has room for
    (112 voxels for all of them), their exponents summing to 1. Raises :class:`MedDPMError` for sides below 7 voxels,
    and where MONAI is not installed.
    """
    require("MS-SSIM", "monai")
    import torch
    from monai.metrics.regression import MultiScaleSSIMMetric

    weights = np.array(_WEIGHTS[: scales(first.shape)])
    metric = MultiScaleSSIMMetric(
        spatial_dims=3, data_range=1.0, kernel_size=_WINDOW, weights=(weights / weights.sum()).tolist(),
        reduction="none",
    )  # fmt: skip
    pair = (torch.from_numpy((image.astype(np.float32) + 1) / 2)[None, None] for image in (first, second))
    return min(1.0, float(metric(*pair)))  # which rounding exceeds by some 1e-5


def scales(shape: Sequence[int]) -> int:
    """How many of the five scales of MS-SSIM images of ``shape`` have room for."""
    shortest = min(shape)
    if shortest < _WINDOW:
        raise MedDPMError(f"MS-SSIM needs sides of at least {_WINDOW} voxels, not {shortest}")
    # The coarsest scale must hold the window; MONAI asks for more, the square of the number of halvings.
    return max(n for n in range(1, len(_WEIGHTS) + 1) if shortest // max(2 ** (n - 1), (n - 1) ** 2) >= _WINDOW)


def bounding_box(inside: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around ``inside``, as slices along D, H, W, widened to 7 voxels where the array has them.

    Raises :class:`MedDPMError` if nothing is inside.
    """
    if not inside.any():
        raise MedDPMError("the mask is empty: there is nothing to compare")
    box = []
    for axis, length in enumerate(inside.shape):
        where = np.flatnonzero(inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis)))
        low = max(0, min(where[0], length - _WINDOW))
        box.append(slice(int(low), int(max(where[-1] + 1, min(length, low + _WINDOW)))))
    return tuple(box)


def gradient_energy(image: np.ndarray, inside: np.ndarray) -> float:
    """Mean squared gradient (central differences, per voxel) over ``inside``: blur lowers it, grain raises it."""
    energy = sum(gradient**2 for gradient in np.gradient(image.astype(np.float32)))
    return float(energy[inside].mean(dtype=np.float64))  # type: ignore[index]


def spread(images: Sequence[np.ndarray], where: np.ndarray) -> float | None:
    """The standard deviation over ``images`` (at least two), averaged over the voxels of ``where``; None without any.

    It is the unbiased one of a sample, so that it does not grow with the number of images.
    """
    if not where.any():
        return None
    values = np.stack([image[where] for image in images]).astype(np.float64)
    return float(values.std(axis=0, ddof=1).mean())
