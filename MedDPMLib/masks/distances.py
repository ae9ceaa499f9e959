"""How deep does a voxel lie: below the brain's surface, and inside its tissue?"""

from __future__ import annotations

import numpy as np

from MedDPMLib.masks.schemes import LabelScheme

#: Beyond so many voxels it makes no difference.
FARTHEST = 31.0


def depths(labels: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """(2, D, H, W) float32, in voxels, for ``labels`` (D, H, W) in the values of ``scheme``; at most 31.

    The first is the depth below the surface of all labels, negative outside; the second that below the surface of all
    labels but the rest of the brain, which is fluid, vessels and meninges: how far they are from tissue, negative.
    """
    inside = labels > 0
    tissue = inside & (labels != scheme.rest.value) if scheme.rest else inside
    return np.stack([_depth(inside), _depth(tissue)])


def _depth(inside: np.ndarray) -> np.ndarray:
    import SimpleITK as sitk

    if not inside.any():
        return np.full(inside.shape, -FARTHEST, np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(inside, np.uint8))
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=False)
    return np.clip(-sitk.GetArrayFromImage(distance), -FARTHEST, FARTHEST)
