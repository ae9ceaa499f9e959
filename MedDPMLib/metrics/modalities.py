"""Do the modalities of a brain fit together? What one says about another, and whether their edges coincide."""

from __future__ import annotations

import numpy as np

from MedDPMLib.errors import MedDPMError

#: Bins of a joint histogram along each axis.
_BINS = 32

#: Edges are the voxels with the steepest gradients: this share of the brain.
_EDGES = 0.1


def mutual_information(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> float:
    """Normalized mutual information (Studholme, Hill and Hawkes 1999), from 1 (independent) to 2 (one gives the other).

    (H(A) + H(B)) / H(A, B) of the intensities (D, H, W) ``inside``, from a joint histogram of 32 bins between the
    percentiles 0.5 and 99.5. Two constant images have 1. Raises :class:`MedDPMError` if nothing is inside.
    """
    a, b = _binned(first, inside), _binned(second, inside)
    joint = np.bincount(a * _BINS + b, minlength=_BINS**2).reshape(_BINS, _BINS).astype(np.float64)
    joint /= joint.sum()
    together = _entropy(joint.ravel())
    if together == 0:
        return 1.0
    return (_entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))) / together


def edge_agreement(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> float:
    """The Dice coefficient of the edges of two images: the tenth of the voxels ``inside`` with the steepest gradients
    (after smoothing by one voxel). 0.1 is chance, 1 means that they have the same edges."""
    edges = [_edges(image, inside) for image in (first, second)]
    return float(2 * (edges[0] & edges[1]).sum() / (edges[0].sum() + edges[1].sum()))


def _edges(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_gradient_magnitude

    steep = gaussian_gradient_magnitude(image.astype(np.float32), 1.0)[inside]
    count = max(1, round(_EDGES * len(steep)))
    chosen = np.zeros(len(steep), bool)
    # A stable order: a constant image has edges, the same ones, and not none.
    chosen[np.argsort(-steep, kind="stable")[:count]] = True
    return chosen


def _binned(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    values = image[inside].astype(np.float64)
    if not len(values):
        raise MedDPMError("the mask is empty: there is nothing to compare")
    low, high = np.percentile(values, (0.5, 99.5))
    if high <= low:
        return np.zeros(len(values), int)
    return np.clip(((values - low) / (high - low) * _BINS).astype(int), 0, _BINS - 1)


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())
