"""How does one patient's scan look, whatever the anatomy? Contrast, noise and sharpness in a few numbers."""

from __future__ import annotations

import numpy as np

#: Numbers that describe one image: :func:`appearance`.
FEATURES = (
    "white matter mean", "white matter sd", "cortex mean", "cortex sd", "rest mean", "rest sd", "ventricle mean",
    "log10 noise", "sharpness along k", "sharpness along j", "sharpness along i",
)  # fmt: skip

_WHITE_MATTER, _CORTEX, _VENTRICLE = "Cerebral white matter", "Cerebral cortex", "Lateral ventricle"

#: The third-order Haar coefficient of each block of 2 x 2 x 2 voxels, flattened.
_HIGHEST_BAND = np.array([1, -1, -1, 1, -1, 1, 1, -1], np.float32) / 8**0.5

#: From a median absolute value to a standard deviation, of normal numbers.
_MAD = 0.6745


def appearance(image: np.ndarray, labels: np.ndarray, scheme) -> np.ndarray:
    """:data:`FEATURES` of one ``image`` (D, H, W) in [-1, 1] with ``labels`` of ``scheme`` (which has structures).

    Means and standard deviations are those of the label; the rest of the brain is mostly fluid. The noise is the robust
    deviation of the highest Haar band in white matter, as a logarithm. The sharpness along an axis is half the
    logarithm of the mean squared difference of neighbors over that of next but one neighbors, inside tissue: 0 for
    noise, below -0.6 for an image that was interpolated from thick slices.
    """
    values = {name: scheme.require_label(name).value for name in (_WHITE_MATTER, _CORTEX, _VENTRICLE)}
    rest = scheme.require_rest().value
    features = []
    for value in (values[_WHITE_MATTER], values[_CORTEX], rest):
        inside = image[labels == value]
        if not inside.size:
            inside = image[labels > 0]
        features += [inside.mean(), inside.std()]
    ventricle = image[labels == values[_VENTRICLE]]
    features.append(ventricle.mean() if ventricle.size else features[4])
    features.append(_noise(image, labels == values[_WHITE_MATTER]))
    tissue = (labels > 0) & (labels < rest)
    features += [_sharpness(image, tissue, axis) for axis in range(3)]
    return np.array(features, np.float32)


def _noise(image: np.ndarray, inside: np.ndarray) -> float:
    sides = [side // 2 for side in image.shape]
    cut = tuple(slice(2 * side) for side in sides)

    def blocks(array: np.ndarray) -> np.ndarray:
        array = array[cut].reshape(sides[0], 2, sides[1], 2, sides[2], 2)
        return array.transpose(0, 2, 4, 1, 3, 5).reshape(*sides, 8)

    band = np.abs(blocks(image)[blocks(inside).all(axis=3)] @ _HIGHEST_BAND)
    return float(np.log10(np.median(band) / _MAD + 1e-3)) if band.size else -3.0


def _sharpness(image: np.ndarray, inside: np.ndarray, axis: int) -> float:
    def difference(step: int) -> float:
        far, near = [slice(None)] * 3, [slice(None)] * 3
        far[axis], near[axis] = slice(step, None), slice(None, -step)
        both = inside[tuple(far)] & inside[tuple(near)]
        return float(np.mean((image[tuple(far)] - image[tuple(near)])[both] ** 2)) if both.any() else 1.0

    return 0.5 * float(np.log(max(difference(1), 1e-12) / max(difference(2), 1e-12)))
