"""Where are the structures of a brain of which only the outline and a tumor are known? As in another brain.

A mask of the scheme "brats" shows what is brain and what is tumor. One of the templates that come with the package is
registered to the outline of the brain, and its structures fill the rest of the mask: first an affine transform, then a
smooth displacement (Thirion 1998, "Image matching as a diffusion process: an analogy with Maxwell's demons"), both
fitted to the signed distances to the two outlines. A tumor displaces what is around it, by as much as the midline of
patients is shifted. The seed
determines the template, whether it is mirrored, and a random deformation inside the outline. Outline and tumor are kept
exactly, voxel by voxel; everything else is invented.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import itk_image
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.fit import Fitted, fit
from MedDPMLib.masks.mask import Mask
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.masks.templates import load_template, templates
from MedDPMLib.models.card import Card

#: Size, in mm, of the voxels on which outlines are compared, and the distance, in mm, up to which they are compared on
#: either side: deeper inside, distances would match the centers of the brains, where there is nothing to match.
_SPACING = 4.0
_REACH = 12.0

#: Distances are measured on every n-th voxel, at most so many mm apart unless the voxels are larger.
_FINEST = 2.0

#: Margin, in mm, around the brain on that grid; more than the distance above.
_MARGIN = 15.0

#: No part of a brain that is smaller, in mm, is filled.
_LEAST_SIDE = 30.0

_AFFINE_ITERATIONS, _ITERATIONS = 60, 20
#: Standard deviation, in voxels, of the Gaussian that keeps the displacement smooth.
_SMOOTHNESS = 4.0

#: Standard deviation along each axis, in mm, of the random deformation inside a brain, and its scale. It fades out
#: toward the outline, over the distance above.
_BENDING, _BENDING_SCALE = 2.5, 15.0

#: How far a tumor, edema included, displaces what is around it, away from its center, in mm for each ml, and at most:
#: measured as the shift of the third ventricle in 40 patients with up to 166 ml (docs/ablations.md). In them it
#: hardly depends on the distance; toward the brain's outline it fades like every displacement.
_PUSH, _FARTHEST_PUSH = 0.0275, 4.6

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


def network_labels(mask: Mask, card: Card, seed: int) -> Fitted:
    """The labels of ``card.condition_scheme`` that the network of ``card`` sees for ``mask``, on the model's grid."""
    fitted = fit(mask, card.grid)
    return fitted if card.completion is None else complete(fitted, card.scheme, card.completion, seed)


def complete(fitted: Fitted, scheme: LabelScheme, into: LabelScheme, seed: int) -> Fitted:
    """``fitted``, labels of ``scheme``, converted to labels of ``into``, whose structures are taken from a template.

    Tumor labels of ``scheme`` are kept; the rest of the brain is filled with the structures, and where the grid cuts it
    off it is treated as if it ended there. The same labels and seed give the same result. A note names the template.
    """
    generator = np.random.default_rng(seed)
    anatomies = [template for template in templates() if template.tumor is None]
    template = anatomies[generator.integers(len(anatomies))]
    mirrored = bool(generator.random() < 0.5)
    structures = _atlas(template.name, into, mirrored)
    brain = fitted.labels > 0
    _check_size(brain, fitted.geometry)
    # Edema swells: it shifts the midline as much as a core of its volume.
    tumor = np.isin(fitted.labels, [label.value for label in scheme.tumor])
    inside = _warped(structures, Volume(brain, fitted.geometry), tumor, generator)
    # Where the template does not reach the outline, there is what lies between brain and skull.
    labels = np.where(brain & (inside == 0), np.uint8(into.require_rest().value), inside) * brain
    for label in scheme.tumor:
        labels[fitted.labels == label.value] = into.require_label(label.name).value
    note = (
        f'invented: where the structures of the brain lie (seed {seed}: after the template "{template.title}"'
        f"{', mirrored' if mirrored else ''}, fitted to the brain's outline)"
    )
    return replace(fitted, labels=labels, notes=(*fitted.notes, note))


def _check_size(brain: np.ndarray, geometry: Geometry) -> None:
    sides = (np.ptp(np.argwhere(brain), axis=0)[::-1] + 1) * geometry.spacing
    if min(sides) < _LEAST_SIDE:
        raise MedDPMError(
            f"the brain of this mask measures {' x '.join(f'{side:.3g}' for side in sides)} mm: the structures of a"
            " template cannot be fitted into it; paint the whole brain"
        )


@lru_cache(maxsize=1)
def _atlas(name: str, scheme: LabelScheme, mirrored: bool) -> Volume:
    volume = load_template(name, scheme).volume
    return Volume(np.ascontiguousarray(volume.array[:, :, ::-1]), volume.geometry) if mirrored else volume


def _warped(structures: Volume, brain: Volume, tumor: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """``structures`` registered to the outline of ``brain`` and displaced by a ``tumor``; (k, j, i)."""
    import SimpleITK as sitk

    fixed, moving = _Outline(brain), _Outline(Volume(structures.array > 0, structures.geometry))
    affine = _affine(fixed, moving)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(_ITERATIONS)
    demons.SetStandardDeviations(_SMOOTHNESS)
    near = sitk.Resample(moving.distance, fixed.distance, affine, sitk.sitkLinear, _REACH)
    field = sitk.GetArrayFromImage(demons.Execute(fixed.distance, near)).astype(np.float64)
    depth = np.clip(-sitk.GetArrayViewFromImage(fixed.distance) / _REACH, 0, 1)[..., None]
    bent = _bending(depth.shape[:3], generator)
    if tumor.any():
        bent += _pushed_aside(Volume(tumor, brain.geometry), fixed.place)
    field = sitk.GetImageFromArray(field + depth * bent, isVector=True)
    field.CopyInformation(fixed.distance)
    # Of a chain of transforms the last one is the first that a point goes through.
    to_template = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])
    warped = sitk.Resample(
        itk_image(structures.array, structures.geometry), itk_image(brain.array.astype(np.uint8), brain.geometry),
        to_template, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8,
    )  # fmt: skip
    return sitk.GetArrayFromImage(warped)


class _Outline:
    """The surface of a ``brain``: the corners ``low`` and ``high`` of its box (LPS, mm), and its ``distance``.

    ``distance`` is a SimpleITK image of how far (mm) from the surface each point of a coarse grid around the brain is,
    negative inside, clipped; ``place`` is that grid.
    """

    def __init__(self, brain: Volume) -> None:
        brain = _thinned(brain)
        ras = brain.geometry.to_ras(np.argwhere(brain.array)[:, ::-1])
        ends = np.stack([ras.min(axis=0), ras.max(axis=0)])
        size = np.ceil((ends[1] - ends[0] + 2 * _MARGIN) / _SPACING).astype(int)
        self.place = Grid(tuple(size.tolist()), (_SPACING,) * 3, "LPS").centered_on(ends.mean(axis=0))
        # A few stray voxels do not move these.
        self.low, self.high = np.sort(np.percentile(ras, [0.1, 99.9], axis=0) * _RAS_TO_LPS, axis=0)
        distance = np.clip(_distance(brain, self.place), -_REACH, _REACH)
        self.distance = itk_image(distance, self.place)


def _thinned(region: Volume) -> Volume:
    """Every n-th voxel of ``region`` along each axis."""
    step = np.maximum(1, np.floor(_FINEST / region.geometry.spacing + 0.01)).astype(int)
    array = region.array[:: step[2], :: step[1], :: step[0]]
    return Volume(array, Geometry(array.shape[::-1], region.geometry.ijk_to_ras @ np.diag([*step, 1])))


def _distance(region: Volume, place: Geometry) -> np.ndarray:
    """How far (mm) the points of ``place`` are from the surface of ``region``, holes filled; negative inside.

    Measured on the voxels of ``region`` and averaged, so that it is finer than those of ``place``.
    """
    import SimpleITK as sitk

    filled = sitk.BinaryFillhole(itk_image(region.array.astype(np.uint8), region.geometry))
    distance = sitk.SignedMaurerDistanceMap(filled, squaredDistance=False, useImageSpacing=True)
    measured = sitk.GetArrayFromImage(distance)
    return resample_image(Volume(measured, region.geometry), place, fill=float(measured.max())).array


def _affine(fixed: _Outline, moving: _Outline):
    """The affine transform, from points of ``fixed`` to those of ``moving``, that lays one surface on the other."""
    import SimpleITK as sitk

    affine = sitk.AffineTransform(3)
    affine.SetCenter(((fixed.low + fixed.high) / 2).tolist())
    affine.SetTranslation(((moving.low + moving.high - fixed.low - fixed.high) / 2).tolist())
    affine.SetMatrix(np.diag((moving.high - moving.low) / (fixed.high - fixed.low)).ravel().tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetShrinkFactorsPerLevel([2])
    method.SetSmoothingSigmasPerLevel([0])
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, _AFFINE_ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(affine, inPlace=True)
    method.Execute(fixed.distance, moving.distance)
    return affine


def _bending(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """A smooth random displacement, in mm: (*shape, 3)."""
    import SimpleITK as sitk

    components = []
    for _ in range(3):
        noise = sitk.GetImageFromArray(generator.standard_normal(shape))
        smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, _BENDING_SCALE / _SPACING))
        components.append(smooth / smooth.std() * _BENDING)
    return np.stack(components, axis=-1)


def _pushed_aside(tumor: Volume, place: Geometry) -> np.ndarray:
    """Where what lies at each point of ``place`` was before ``tumor`` grew, relative to it (LPS, mm): (k, j, i, 3)."""
    center = tumor.geometry.to_ras(np.argwhere(tumor.array)[:, ::-1]).mean(axis=0)
    k, j, i = np.indices(place.shape)
    away = (place.to_ras(np.stack([i, j, k], axis=-1)) - center) * _RAS_TO_LPS
    away /= np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), _SPACING)
    milliliters = np.count_nonzero(tumor.array) * tumor.geometry.voxel_volume / 1000
    return -min(_PUSH * milliliters, _FARTHEST_PUSH) * away
