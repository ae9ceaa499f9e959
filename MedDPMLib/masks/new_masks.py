"""Which new masks follow from given ones? Their tumors moved, changed and exchanged, their anatomies deformed.

What is drawn for a mask depends on its seed and on the masks it may use, and on nothing else. A tumor stays inside the
brain, out of its fluid, and on its side of the midline unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, center_of, extent
from MedDPMLib.imaging.io import itk_array, itk_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.mask import Mask
from MedDPMLib.masks.midline import Midline, find_midline, labels_at
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.runtime.packages import require
from MedDPMLib.validation import quoted

#: What can be changed, in the order in which it is done.
CHANGES = ("transplant", "anatomy", "mirror", "scale", "grow", "deform", "move")

#: The tissues of a glioma, from the outside in: each lies in the one before.
_LAYERS = ("edema", "rim", "core")

#: The factor of a tumor's diameters is between these, and by so many mm its layers grow (or shrink).
_SCALES = (0.7, 1.4)
_GROWTH_MM = (-2.0, 5.0)

#: Standard deviation of a deformation at its control points and their distance: of a tumor in its radii, of an anatomy
#: in mm. A cubic B-spline whose coefficients stay below 0.4 of their distance folds nothing (Choi and Lee 2000).
_TUMOR_BEND, _TUMOR_POINTS = 0.18, 0.7
_ANATOMY_BEND, _ANATOMY_POINTS = 4.0, 40.0
_NO_FOLD = 0.39

#: This share of a tumor has to find room inside the brain; of :data:`_TRIES` places the first where it does is taken.
_LEAST_KEPT = 0.85
_TRIES = 200

#: Where a tumor is moved to, at most this share of it lies over fluid, which it would enclose.
_MOST_FLUID = 0.03

#: Pieces of a tumor with less than this share of it, cut off by the surface of brain or ventricles, are left out.
_LEAST_PIECE = 0.02

#: So much (mm) around a tumor its distances are measured.
_MARGIN = 12.0


@dataclass(frozen=True, eq=False)
class NewMask:
    """``labels`` (uint8, the scheme's values), the ``anatomy`` without the tumor, and the ``record`` of both."""

    labels: Volume
    anatomy: Volume
    record: dict[str, Any]


def new_mask(
    masks: Sequence[Mask], seed: int, *, changes: Sequence[str] = CHANGES, across_midline: bool = False
) -> NewMask:
    """A new mask of one of ``masks``, all of one scheme; ``seed`` says which, and how it is changed.

    ``changes`` are those of :data:`CHANGES` that may be made: "transplant" takes the tumor of another mask, "anatomy"
    deforms the brain, "mirror" (every second time) takes the tumor to the other side, "scale", "grow" and "deform"
    change its size and shape, "move" takes it anywhere in the white matter (in schemes without it, the brain).

    Raises :class:`MedDPMError` for unknown changes, without a tumor, and if the tumor has no room in the brain.
    """
    require("new masks", "scipy")
    if unknown := [change for change in changes if change not in CHANGES]:
        raise MedDPMError(f"there is no change {quoted(unknown[0])}: use {', '.join(CHANGES)}")
    if not masks:
        raise MedDPMError("new masks need masks to start from")
    scheme = masks[0].scheme
    if any(mask.scheme != scheme for mask in masks):
        raise MedDPMError("new masks need masks of one scheme")
    donors = [mask for mask in masks if _tumor(mask.volume.array, scheme).any()]
    if not donors:
        raise MedDPMError(f"none of the {len(masks)} masks has a tumor: new masks need at least one")
    random = np.random.default_rng(seed)
    first, second = random.random(2)
    host = masks[int(first * len(masks))]
    donor = host
    if "transplant" in changes:
        others = [mask for mask in donors if mask is not host] or donors
        donor = others[int(second * len(others))]
    elif not any(mask is host for mask in donors):
        host = donor = donors[int(second * len(donors))]
    # Every change draws its numbers, made or not: the same seed with fewer changes differs in nothing else.
    drawn = _Drawn(
        mirrored=bool(random.random() < 0.5) and "mirror" in changes,
        scale=_made("scale", changes, float(np.exp(random.uniform(*np.log(_SCALES)))), 1.0),
        growth_mm=_made("grow", changes, float(random.uniform(*_GROWTH_MM)), 0.0),
        tumor_bend=_TUMOR_BEND * ("deform" in changes),
        anatomy_bend_mm=_ANATOMY_BEND * ("anatomy" in changes),
        moved="move" in changes,
    )
    bends, places = (np.random.default_rng(random.integers(2**63)) for _ in range(2))
    anatomy = _bent(_without_tumor(host), drawn.anatomy_bend_mm, bends)
    midline = find_midline(anatomy)
    tumor = _Tumor(donor, drawn, bends)
    room = _Room(anatomy, scheme, None if across_midline else midline)
    start = _corresponding(tumor.center, donor, anatomy, midline, drawn.mirrored)
    labels, center, kept = _placed(tumor, room, start, places if drawn.moved else None)
    if labels is None:
        raise MedDPMError(
            f"the tumor of {donor.name} has no room in the brain of {host.name}: at best {100 * kept:.0f} % of it lie"
            " inside",
            remedy="allow it to move, or use another seed",
        )
    counts = np.bincount(labels.array.ravel(), minlength=256) * labels.geometry.voxel_volume / 1000
    record = {
        "description": "label map made by MedDPM, synthetic",
        "seed": seed,
        "scheme": scheme.name,
        "host": {"name": host.name, "hash": host.hash},
        "donor": {"name": donor.name, "hash": donor.hash},
        "changes": [change for change in CHANGES if change in changes],
        "across_midline": across_midline,
        "drawn": asdict(drawn),
        "midline": {"normal_ras": [round(float(n), 5) for n in midline.normal], "offset_mm": round(midline.offset, 3)},
        "center_ras_mm": [round(float(c), 2) for c in center],
        "kept": round(float(kept), 4),
        "ml": {label.name: round(float(counts[label.value]), 3) for label in scheme.labels if counts[label.value]},
    }
    return NewMask(labels, anatomy, record)


@dataclass(frozen=True)
class _Drawn:
    mirrored: bool
    scale: float
    growth_mm: float
    tumor_bend: float
    anatomy_bend_mm: float
    moved: bool


def _made(change: str, changes: Sequence[str], value: float, otherwise: float) -> float:
    return value if change in changes else otherwise


def _tumor(labels: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    return np.isin(labels, [label.value for label in scheme.tumor])


# The anatomy ------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _without_tumor(mask: Mask) -> Volume:
    """The mask's labels without its tumor: in its place is the tissue of the other side, or else the nearest."""
    from scipy.ndimage import distance_transform_edt

    labels, scheme = mask.volume.array, mask.scheme
    tumor = _tumor(labels, scheme)
    if not tumor.any():
        return mask.volume
    spared = [0, *(label.value for label in (*scheme.tumor, *scheme.of_tissue("fluid")))]
    tissue = np.isin(labels, [label.value for label in scheme.labels if label.role == "structure"])
    if scheme.rest and (tissue & ~np.isin(labels, spared)).any():
        # Under a tumor at the surface there is tissue, not what surrounds it.
        spared.append(scheme.rest.value)
    filled = labels.copy()
    ijk = np.argwhere(tumor)[:, ::-1]
    mirrored = labels_at(mask.volume, find_midline(mask.volume).reflected(mask.volume.geometry.to_ras(ijk)))
    found = ~np.isin(mirrored, spared)
    i, j, k = ijk[found].T
    filled[k, j, i] = mirrored[found]
    left = tumor.copy()
    left[k, j, i] = False
    for margin in (15, max(labels.shape)):
        box = _box(tumor, margin)
        known = ~np.isin(labels[box], spared)
        if known.any():
            break
    else:
        raise MedDPMError(f"{mask.name} is nothing but tumor: paint the brain around it")
    nearest = distance_transform_edt(
        ~known, sampling=mask.volume.geometry.spacing[::-1], return_distances=False, return_indices=True
    )
    filled[box][left[box]] = labels[box][tuple(nearest)][left[box]]
    return Volume(filled, mask.volume.geometry)


def _bent(labels: Volume, deviation: float, random: np.random.Generator) -> Volume:
    """``labels`` smoothly deformed, by ``deviation`` (mm) at control points 40 mm apart."""
    import SimpleITK as sitk

    image = itk_image(np.ascontiguousarray(labels.array), labels.geometry)
    bend = _spline(image, _ANATOMY_POINTS, deviation, random)
    if not deviation:
        return labels
    bent = sitk.Resample(image, image, bend, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    return Volume(itk_array(bent), labels.geometry)


def _spline(image, distance: float, deviation: float, random: np.random.Generator):
    """A random B-spline transform over the box of ``image``, with control points at about ``distance`` (mm)."""
    import SimpleITK as sitk

    sides = np.array(image.GetSize()) * np.array(image.GetSpacing())
    mesh = np.maximum(1, np.round(sides / distance)).astype(int)
    transform = sitk.BSplineTransformInitializer(image, mesh.tolist(), 3)
    numbers = random.standard_normal(len(transform.GetParameters())).reshape(3, -1) * deviation
    limit = _NO_FOLD * (sides / mesh)
    transform.SetParameters(np.clip(numbers, -limit[:, None], limit[:, None]).ravel().tolist())
    return transform


def _box(where: np.ndarray, margin: int) -> tuple[slice, ...]:
    box = []
    for axis, length in enumerate(where.shape):
        there = np.flatnonzero(where.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(there[0]) - margin), min(length, int(there[-1]) + 1 + margin)))
    return tuple(box)


# The tumor --------------------------------------------------------------------------------------------


class _Tumor:
    """The tumor of ``donor``, changed as ``drawn``, to be put anywhere.

    Its layers are level sets of their distances (mm), which grow together and stay in each other.
    """

    def __init__(self, donor: Mask, drawn: _Drawn, random: np.random.Generator) -> None:
        import SimpleITK as sitk

        labels, geometry, scheme = donor.volume.array, donor.volume.geometry, donor.scheme
        tumor = _tumor(labels, scheme)
        voxels = np.argwhere(tumor)[:, ::-1]
        self.center = geometry.to_ras(voxels.mean(axis=0))
        margin = int(np.ceil(_MARGIN / geometry.spacing.min()))
        box = _box(np.pad(tumor, margin), margin)
        cut = np.pad(labels, margin)[box]
        low = np.array([part.start - margin for part in box])[::-1]
        place = geometry.cut(low, low + cut.shape[::-1])
        self.layers: list[tuple[int, Any]] = []
        for value, where in _nested(cut, scheme):
            if where.any():
                region = itk_image(where.astype(np.uint8), place)
                self.layers.append((value, sitk.SignedMaurerDistanceMap(region, False, False, True)))
        self.loose = itk_image(np.where(_tumor(cut, scheme), cut, 0), place) if len(_layers(scheme)) < 3 else None
        # Voxels at the surface have the distance 0, their neighbors outside a voxel's side.
        self.level = drawn.growth_mm + 0.5 * float(geometry.spacing.min())
        self.reach = float(np.linalg.norm(geometry.to_ras(voxels) - self.center, axis=1).max()) * drawn.scale
        self.reach += max(0.0, drawn.growth_mm) * drawn.scale + 4
        self.radius = (3 * len(voxels) * geometry.voxel_volume / (4 * np.pi)) ** (1 / 3) * drawn.scale
        self.drawn, self._bend_seed = drawn, int(random.integers(2**63))

    def at(self, center: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry, np.ndarray]:
        """The labels around ``center`` (RAS) on the lattice of ``geometry``, where they lie, and their first index."""
        import SimpleITK as sitk

        middle = geometry.to_ijk(center)
        span = self.reach * (1 + 2 * self.drawn.tumor_bend) * np.linalg.norm(geometry.ras_to_ijk[:3, :3], axis=1)
        low, high = np.floor(middle - span).astype(int), np.ceil(middle + span).astype(int) + 1
        place = geometry.cut(low, high)
        reference = itk_image(np.zeros(place.shape, np.uint8), place)
        affine = sitk.AffineTransform(3)
        affine.SetMatrix(
            np.diag(np.array([-1.0 if self.drawn.mirrored else 1.0, 1.0, 1.0]) / self.drawn.scale).ravel().tolist()
        )
        affine.SetCenter(_lps(center))
        affine.SetTranslation((np.array(_lps(self.center)) - _lps(center)).tolist())
        transform = affine
        if self.drawn.tumor_bend:
            distance = max(_TUMOR_POINTS * self.radius, 2 * float(geometry.spacing.max()))
            bend = _spline(
                reference, distance, self.drawn.tumor_bend * self.radius, np.random.default_rng(self._bend_seed)
            )
            # Of a chain of transforms the last one is the first that a point goes through.
            transform = sitk.CompositeTransform([affine, bend])
        found = np.zeros(place.shape, np.uint8)
        outer = None
        for value, distance_map in self.layers:
            inside = itk_array(sitk.Resample(distance_map, reference, transform, sitk.sitkLinear, 1e3)) <= self.level
            outer = inside if outer is None else outer
            found[inside & outer] = value
        if self.loose is not None and outer is not None:
            found = self._of_nearest(
                found, itk_array(sitk.Resample(self.loose, reference, transform, sitk.sitkNearestNeighbor, 0))
            )
        return found, place, low

    @staticmethod
    def _of_nearest(region: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """In ``region`` the nearest of ``labels``: how tumors grow whose parts do not lie in each other."""
        from scipy.ndimage import distance_transform_edt

        if not labels.any():
            return np.zeros_like(region)
        nearest = distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
        return np.where(region > 0, labels[tuple(nearest)], 0).astype(np.uint8)


def _layers(scheme: LabelScheme) -> list[int]:
    """The values of edema, rim and core, if the scheme has them all and no other part of a tumor; else fewer."""
    values = [scheme.of_tissue(tissue)[0].value for tissue in _LAYERS if scheme.of_tissue(tissue)]
    return values if len(values) == len(scheme.tumor) == 3 else values[:0]


def _nested(labels: np.ndarray, scheme: LabelScheme) -> list[tuple[int, np.ndarray]]:
    """The regions of a tumor from the outside in, each with the value of what is no part of the next."""
    values = _layers(scheme)
    if not values:
        return [(scheme.tumor[0].value, _tumor(labels, scheme))]
    return [(value, np.isin(labels, values[index:])) for index, value in enumerate(values)]


def _lps(ras: np.ndarray) -> list[float]:
    return [-float(ras[0]), -float(ras[1]), float(ras[2])]


# The place --------------------------------------------------------------------------------------------


class _Room:
    """Where in ``anatomy`` a tumor may be: inside, not in fluid, and with a ``midline`` on one side."""

    def __init__(self, anatomy: Volume, scheme: LabelScheme, midline: Midline | None) -> None:
        self.anatomy, self.midline = anatomy, midline
        self.fluid = np.isin(anatomy.array, [label.value for label in scheme.of_tissue("fluid")])
        self.free = (anatomy.array > 0) & ~self.fluid
        white = np.isin(anatomy.array, [label.value for label in scheme.of_tissue("white matter")])
        self.starts = np.flatnonzero(white if white.any() else self.free)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """A random voxel (i, j, k) for the middle of a tumor."""
        voxel = self.starts[int(random.integers(len(self.starts)))]
        return np.array(np.unravel_index(voxel, self.free.shape))[::-1]

    def within(self, place: Geometry, low: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, tuple, tuple]:
        """What is free of the box ``place``, which begins at index ``low``; and the slices of both that overlap."""
        size = np.array(self.anatomy.geometry.size)
        first, last = np.maximum(low, 0), np.minimum(low + place.size, size)
        here = tuple(slice(int(a), int(max(a, b))) for a, b in zip(first[::-1], last[::-1], strict=True))
        there = tuple(
            slice(int(a - o), int(max(a, b) - o)) for a, b, o in zip(first[::-1], last[::-1], low[::-1], strict=True)
        )
        free = np.zeros(place.shape, bool)
        free[there] = self.free[here]
        if self.midline is not None:
            k, j, i = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in place.shape), indexing="ij", sparse=True)
            along = self.midline.normal @ place.ijk_to_ras[:3, :3]
            side = along[0] * i + along[1] * j + along[2] * k + (self.midline.side(place.to_ras(np.zeros(3))))
            free &= side * np.sign(self.midline.side(center) or 1) >= 0
        return free, here, there


def _placed(
    tumor: _Tumor, room: _Room, start: np.ndarray, places: np.random.Generator | None
) -> tuple[Volume | None, np.ndarray, float]:
    """The anatomy with the tumor, where its middle is, and which share of it had room; no labels if it has none.

    Tried is ``start``, or with ``places`` random ones instead.
    """
    geometry, best = room.anatomy.geometry, 0.0
    # The same voxels at every place: each is a whole number of them away from the first.
    shape, place, first = tumor.at(start, geometry)
    total = np.count_nonzero(shape)
    for _ in range(1 if places is None or not total else _TRIES):
        shift = np.zeros(3, int) if places is None else room.draw(places) - np.rint(geometry.to_ijk(start)).astype(int)
        low = first + shift
        center = geometry.to_ras(geometry.to_ijk(start) + shift)
        free, here, there = room.within(geometry.cut(low, low + place.size), low, center)
        kept = np.count_nonzero(free & (shape > 0)) / total if total else 0.0
        best = max(best, kept)
        enclosed = np.count_nonzero((shape[there] > 0) & room.fluid[here]) if places is not None else 0
        if kept >= _LEAST_KEPT and enclosed <= _MOST_FLUID * total:
            labels = room.anatomy.array.copy()
            part = _without_crumbs(np.where(free, shape, 0))[there]
            labels[here][part > 0] = part[part > 0]
            return Volume(labels, geometry), center, kept
    return None, start, best


def _without_crumbs(tumor: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    pieces, count = label(tumor > 0)
    if count < 2:
        return tumor
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.where((sizes >= _LEAST_PIECE * sizes.sum())[pieces], tumor, 0)


def _corresponding(center: np.ndarray, donor: Mask, anatomy: Volume, midline: Midline, mirrored: bool) -> np.ndarray:
    """The place in ``anatomy`` that corresponds to ``center`` in the donor's brain, by the boxes around both."""
    boxes = [
        (center_of(v.array > 0, v.geometry), np.subtract(*extent(v.array > 0, v.geometry)[::-1]))
        for v in (donor.volume, anatomy)
    ]
    (theirs, their_size), (ours, our_size) = boxes
    place = (
        center
        if np.array_equal(donor.volume.array > 0, anatomy.array > 0)
        else ours + (center - theirs) * our_size / their_size
    )
    return midline.reflected(place) if mirrored else place
