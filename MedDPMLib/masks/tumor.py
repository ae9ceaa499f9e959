"""How is a tumor painted into a mask, in one stroke?

A stamp of three layers, as a glioma shows them: a necrotic core, an enhancing rim, and edema that spreads in
the white matter. Its outline is irregular, and the same at any resolution.
"""

from __future__ import annotations

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.masks.schemes import Label, LabelScheme
from MedDPMLib.moved import former_names

#: Plane waves in the sum that roughens an outline, and their number of periods within one radius.
_WAVES = 32
_PERIODS = (0.25, 1.1)

#: How far, in radii, a tumor can reach.
_REACH = 3.0

#: Where the layers end, in radii, and how far (one standard deviation) the outline strays from it.
_NECROSIS = (0.64, 0.12)
_CORE = (1.0, 0.14)
_EDEMA = (1.7, 0.35)

#: Thickness of the enhancing rim, in radii, at its thinnest.
_THINNEST_RIM = 0.12

#: How far, in radii, the edema reaches into what is not white matter.
_EDEMA_BEYOND_WHITE_MATTER = 1.12

__getattr__ = former_names(__name__, {"paint_tumour": "paint_tumor"})


def paint_tumor(
    labels: np.ndarray, geometry: Geometry, scheme: LabelScheme, center: np.ndarray, radius: float, *, seed: int = 0
) -> np.ndarray:
    """A copy of ``labels`` (k, j, i) with a tumor at ``center`` (RAS, mm) whose core has the ``radius`` (mm).

    Only what is labeled is painted over, ventricles are not. In a scheme without white matter the edema
    spreads in the rest of the brain; in one with a single tumor label the core alone is painted. ``seed``
    chooses the outline; equal arguments give equal tumors, whatever the voxels' size. Raises
    :class:`MedDPMError` if there is nothing to paint on.
    """
    center = np.asarray(center, np.float64)
    if not (np.isfinite(center).all() and 0 < radius < 100):
        raise MedDPMError(f"a tumor needs a position and a radius above 0 and below 100 mm, not {radius:g} mm")
    box, place = _box(geometry, center, _REACH * radius)
    if place is None:
        raise MedDPMError("there is no brain to paint a tumor on at this position: choose one inside the brain")
    generator = np.random.default_rng(seed)
    axes = np.linalg.qr(generator.standard_normal((3, 3)))[0] * generator.uniform(0.85, 1.2, 3)
    distance = np.linalg.norm((_positions(place) - center) / radius @ axes, axis=-1)
    necrotic_edge, core_edge, edema_edge = (
        edge + stray * _roughness(place, center, radius, generator) for edge, stray in (_NECROSIS, _CORE, _EDEMA)
    )
    core, edema = distance < core_edge, distance < edema_edge
    necrosis = distance < np.minimum(necrotic_edge, core_edge - _THINNEST_RIM)
    painted = labels.copy()
    part = painted[box]

    shown = [scheme.of_tissue(tissue) for tissue in ("edema", "rim", "core")]
    if all(shown):
        extents = (edema & _may_swell(part, distance, scheme), core, necrosis)
        layers: list[tuple[Label, np.ndarray]] = [
            (labels_of[0], where) for labels_of, where in zip(shown, extents, strict=True)
        ]
    else:
        layers = [(label, core) for label in scheme.tumor[:1]]
    spared = [label.value for label in scheme.of_tissue("fluid")]
    paintable = (part != 0) & ~np.isin(part, spared)
    if not (core & paintable).any():
        raise MedDPMError("there is no brain to paint a tumor on at this position: choose one inside the brain")
    touched = _connected(np.any([where for _, where in layers], axis=0) & paintable, core)
    for label, where in layers:
        part[where & touched] = label.value
    return painted


def _box(geometry: Geometry, center: np.ndarray, reach: float) -> tuple[tuple[slice, ...], Geometry | None]:
    """The slices (k, j, i) within ``reach`` mm of ``center`` and their geometry; None if that is elsewhere."""
    middle = geometry.to_ijk(center)
    # The length of a row of the inverse bounds how far an index can grow in one millimeter.
    span = reach * np.linalg.norm(geometry.ras_to_ijk[:3, :3], axis=1)
    low = np.clip(np.floor(middle - span), 0, geometry.size).astype(int)
    high = np.clip(np.ceil(middle + span) + 1, 0, geometry.size).astype(int)
    if (high <= low).any():
        return (), None
    return tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True)), geometry.cut(low, high)


def _positions(geometry: Geometry) -> np.ndarray:
    """RAS positions (k, j, i, 3) of all voxels."""
    k, j, i = np.meshgrid(*(np.arange(length) for length in geometry.shape), indexing="ij")
    return geometry.to_ras(np.stack([i, j, k], axis=-1))


def _roughness(place: Geometry, center: np.ndarray, radius: float, generator: np.random.Generator) -> np.ndarray:
    """A smooth random function of position, mean 0 and variance 1, at the voxels (k, j, i) of ``place``.

    A sum of plane waves. The phase of each is linear in i, j and k, so that the waves are products of a
    factor for each axis, and their sum is one matrix product.
    """
    directions = generator.standard_normal((_WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = 2 * np.pi * directions * generator.uniform(*_PERIODS, (_WAVES, 1)) / radius
    phases = generator.uniform(0, 2 * np.pi, _WAVES) + waves @ (place.to_ras(np.zeros(3)) - center)
    along = [
        np.exp(1j * np.outer(waves @ place.ijk_to_ras[:3, axis], np.arange(place.size[axis]))) for axis in range(3)
    ]
    sections = along[2][:, :, None] * along[1][:, None, :] * np.exp(1j * phases)[:, None, None]
    return np.tensordot(sections, along[0], axes=(0, 0)).real * np.sqrt(2 / _WAVES)


def _may_swell(part: np.ndarray, distance: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """Where edema can be: white matter, and a thin shell of other tissue, but not fluid, around the core."""
    shell = distance < _EDEMA_BEYOND_WHITE_MATTER
    white_matter = [label.value for label in scheme.of_tissue("white matter")]
    if not white_matter:
        return shell if scheme.rest is None else shell | (part == scheme.rest.value)
    if scheme.rest is not None:
        shell &= part != scheme.rest.value
    return shell | np.isin(part, white_matter)


def _connected(region: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """The pieces of ``region`` that touch ``seed``: no islands across a sulcus."""
    import SimpleITK

    pieces = SimpleITK.GetArrayFromImage(
        SimpleITK.ConnectedComponent(SimpleITK.GetImageFromArray(region.astype(np.uint8)))
    )
    kept = np.unique(pieces[seed & region])
    return np.isin(pieces, kept[kept != 0])
