"""Is this a mask the model can use? And the way from a mask to the network's condition."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from MedDPMLib.brain_area import brain_area, describe_volume, outside_brain
from MedDPMLib.errors import MedDPMError
from MedDPMLib.geometry import Geometry, Grid, brain_center
from MedDPMLib.labels import LabelScheme, Numbering
from MedDPMLib.segments import holds_segments, read_segments
from MedDPMLib.volume import Volume, read_volume, resample_labels, volume_stem

#: No file's numbering goes higher; more is an image or a parcellation of another kind.
_HIGHEST_VALUE = 65_535

#: Longest side, in millimetres, that a brain or head can have; outside of this the spacing is doubted.
_PLAUSIBLE_EXTENT = (60.0, 300.0)

#: How far, in millimetres, the model's grid leaves the brain's centre to hold what would be cut off.
_LONGEST_SHIFT = 10.0


@dataclass(frozen=True, eq=False)
class Mask:
    """A checked mask: ``volume`` (uint8) holds the values of ``scheme``.

    ``name`` is what results are named after, ``source`` the file it came from (None for an array), ``notes``
    are sentences for the user: how the file was read, and what looks odd but is not refused.
    """

    volume: Volume
    scheme: LabelScheme
    name: str
    source: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_volume(
        cls,
        volume: Volume,
        scheme: LabelScheme,
        *,
        name: str = "mask",
        source: str | None = None,
        numbering: str | None = None,
        brain_from: str | os.PathLike | Volume | None = None,
    ) -> Mask:
        """Checks a ``volume`` of labels and brings it into the values of ``scheme``.

        ``numbering`` names one of the scheme's numberings (``scheme.own_numbering`` for the scheme's values);
        without it the values present decide. ``brain_from`` is a skull-stripped image, in any geometry, whose
        foreground becomes the rest of the brain where no label is.

        Raises :class:`MedDPMError` for an empty mask, values that are not whole, negative, ambiguous or outside
        the scheme, a mask without a brain area, and an image that does not overlap the mask.
        """
        where = source or name
        try:
            array = _whole_numbers(volume.array)
            counts = _count_values(array)
            present = {int(value) for value in np.flatnonzero(counts[1:]) + 1}
            if not present:
                raise MedDPMError("the mask is empty: paint at least the brain, or start from a template")
            read_as = _choose(scheme, numbering, {v: counts[v] * volume.geometry.voxel_volume for v in present})
            labels = read_as.translate(array)
            notes = [*volume.notes, f'values read as "{read_as.name}": {read_as.title}']
            area = None
            if brain_from is not None:
                area, note = brain_area(brain_from, volume.geometry)
                labels[area & (labels == 0)] = _rest_of(scheme).value
                notes.append(note)
            notes += _check_brain(set(np.flatnonzero(_count_values(labels)[1:]) + 1), present, scheme, read_as)
        except MedDPMError as error:
            raise MedDPMError(f"{where}: {error}") from error
        notes += _odd_extent(labels, volume.geometry)
        notes += _tumour_outside(labels, area, volume.geometry, scheme)
        return cls(Volume(labels, volume.geometry), scheme, name, source, tuple(notes))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of size, position and labels: equal for masks that ask for the same volume."""
        digest = hashlib.sha256(np.array(self.volume.geometry.size, "<i8").tobytes())
        digest.update(self.volume.geometry.ijk_to_ras.astype("<f8").tobytes())
        digest.update(np.ascontiguousarray(self.volume.array))
        return digest.hexdigest()

    @cached_property
    def _fitted(self) -> dict[Grid, Fitted]:
        """What :func:`fit` has worked out: a mask is often used for several samples."""
        return {}


def read_mask(
    path: str | os.PathLike,
    scheme: LabelScheme,
    *,
    numbering: str | None = None,
    brain_from: str | os.PathLike | Volume | None = None,
) -> Mask:
    """Reads the mask in ``path``; see :meth:`Mask.from_volume`.

    In a segmentation of 3D Slicer (``.seg.nrrd``) terminology and names say which label a segment is, unless
    ``numbering`` is given.
    """
    path = Path(path)
    if numbering is None and holds_segments(path):
        volume, numbering = read_segments(path, scheme), scheme.own_numbering
    else:
        volume = read_volume(path)
    return Mask.from_volume(
        volume, scheme, name=volume_stem(path), source=str(path), numbering=numbering, brain_from=brain_from
    )


# Into the model's grid -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fitted:
    """A mask on the model's grid: ``labels`` (D, H, W), uint8, on ``geometry``.

    ``outside`` says how many mm^3 of which label (by name) lie outside the grid and are cut off.
    """

    labels: np.ndarray
    geometry: Geometry
    outside: dict[str, float]
    notes: tuple[str, ...]


def fit(mask: Mask, grid: Grid) -> Fitted:
    """Places ``grid`` on the mask's brain (:meth:`Grid.place`) and brings the labels there, never stretched.

    What is cut off and what is too small to survive is told in ``outside`` and ``notes``. The same mask and grid
    give the same object, worked out once. Raises :class:`MedDPMError` if nothing is left.
    """
    if grid not in mask._fitted:
        mask._fitted[grid] = _fit(mask, grid)
    return mask._fitted[grid]


def _fit(mask: Mask, grid: Grid) -> Fitted:
    labels, geometry, scheme = mask.volume.array, mask.volume.geometry, mask.scheme
    foreground = labels != 0
    low, high = _extent(foreground, geometry)
    center = grid.holding(brain_center(foreground, geometry), low, high, _LONGEST_SHIFT)
    placed = grid.place(geometry, center)
    fitted = resample_labels(mask.volume, placed, scheme.priority).array
    total, inside, left = _count_values(labels), _count_inside(labels, geometry, placed), _count_values(fitted)
    if not left[1:].any():
        sides = " x ".join(f"{n * s:g}" for n, s in zip(grid.size, grid.spacing, strict=True))
        raise MedDPMError(
            f"nothing of {mask.source or mask.name} is left on the model's grid of {sides} mm:"
            " check the mask's size and spacing"
        )
    outside, notes = {}, []
    for label in scheme.labels:
        cut = int(total[label.value] - inside[label.value])
        if cut:
            outside[label.name] = cut * geometry.voxel_volume
            notes.append(
                f"{label.name}: {describe_volume(outside[label.name])} ({100 * cut / total[label.value]:.3g} %)"
                " outside the model's grid, cut off"
            )
        if inside[label.value] and not left[label.value]:
            notes.append(f"{label.name}: too small for the model's voxels, vanishes")
    return Fitted(fitted, placed, outside, tuple(notes))


def condition(
    labels: np.ndarray, scheme: LabelScheme, encoding: tuple[float, float], *, positions: bool = False
) -> np.ndarray:
    """The network's condition, float32 (K, D, H, W), for ``labels`` (D, H, W) in the values of ``scheme``.

    ``encoding`` (low, high) is what a channel holds where its label is not and where it is. The background
    has no channel. With ``positions`` three channels follow, :func:`voxel_positions`, and K is the number of labels
    and three.
    """
    low, high = encoding
    one_hot = scheme.one_hot(labels)
    channels = np.empty((len(one_hot) + (3 if positions else 0), *labels.shape), np.float32)
    for channel, present in zip(channels, one_hot, strict=False):
        np.copyto(channel, present)
        channel *= high - low
        channel += low
    if positions:
        channels[len(one_hot) :] = voxel_positions(labels.shape)
    return channels


def voxel_positions(shape: Sequence[int]) -> np.ndarray:
    """(3, D, H, W) float32: where each voxel's centre lies along i, j and k, the whole grid of ``shape`` (D, H, W)
    reaching from -1 to 1. A patch of the grid has the same patch of this array."""
    axes = [(2 * np.arange(side, dtype=np.float32) + 1) / side - 1 for side in shape]
    return np.stack(np.broadcast_arrays(*np.meshgrid(*axes, indexing="ij", sparse=True))[::-1])


# Measuring -------------------------------------------------------------------------------------------


def _count_values(array: np.ndarray) -> np.ndarray:
    """How often each value of an unsigned ``array`` occurs; section by section, so that memory stays small."""
    counts = np.zeros(np.iinfo(array.dtype).max + 1, np.int64)
    for section in array:
        found = np.bincount(section.ravel())
        counts[: len(found)] += found
    return counts


def _count_inside(labels: np.ndarray, geometry: Geometry, box: Geometry) -> np.ndarray:
    """How many voxels of each value of ``labels`` (uint8) have their centre inside the voxels of ``box``."""
    matrix = box.ras_to_ijk @ geometry.ijk_to_ras
    i, j = np.arange(geometry.size[0])[None, :], np.arange(geometry.size[1])[:, None]
    counts = np.zeros(256, np.int64)
    for k, section in enumerate(labels):
        if not section.any():
            continue
        within = np.ones(section.shape, bool)
        for axis, length in enumerate(box.size):
            along = matrix[axis, 0] * i + matrix[axis, 1] * j + (matrix[axis, 2] * k + matrix[axis, 3])
            within &= (along > -0.5 - 1e-6) & (along < length - 0.5 + 1e-6)
        counts += np.bincount(section[within], minlength=256)
    return counts


def _extent(foreground: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The corners, in RAS, of the smallest box along R, A and S around the voxels of ``foreground``."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for k, section in enumerate(foreground):
        j, i = np.nonzero(section)
        if len(j):
            ras = geometry.to_ras(np.stack([i, j, np.full_like(i, k)], axis=1))
            low, high = np.minimum(low, ras.min(axis=0)), np.maximum(high, ras.max(axis=0))
    half_voxel = np.abs(geometry.ijk_to_ras[:3, :3]).sum(axis=1) / 2
    return low - half_voxel, high + half_voxel


# Checking --------------------------------------------------------------------------------------------


def _whole_numbers(array: np.ndarray) -> np.ndarray:
    """``array`` as uint8 or uint16, if its values are labels."""
    if array.dtype.kind not in "buif":
        raise MedDPMError(f"it holds {array.dtype} values: a mask holds whole numbers")
    lowest, highest = array.min(), array.max()
    if not np.isfinite([lowest, highest]).all():
        raise MedDPMError("it holds values that are not finite (NaN or infinity): a mask holds whole numbers")
    if lowest < 0 or highest > _HIGHEST_VALUE:
        raise MedDPMError(f"it holds values from {lowest:g} to {highest:g}: this is an image, not a mask of labels")
    whole = array.astype(np.uint8 if highest < 256 else np.uint16)
    if array.dtype.kind == "f" and not np.array_equal(whole, array):
        raise MedDPMError(
            f"it holds values that are not whole, such as {array[whole != array][0]:g}: this is an image, or a mask"
            " that was interpolated; resample masks with nearest neighbour"
        )
    return whole


def _choose(scheme: LabelScheme, name: str | None, volumes: dict[int, float]) -> Numbering:
    if name is None:
        return scheme.recognise_numbering(volumes)
    numbering = scheme.numbering(name)
    strange = sorted(value for value in volumes if not numbering.explains({value}))
    if strange:
        listed = ", ".join(map(str, strange[:10]))
        raise MedDPMError(f'the values {listed} have no meaning in the numbering "{name}" ({numbering.title})')
    return numbering


def _rest_of(scheme: LabelScheme):
    if scheme.rest is None:
        raise MedDPMError(f'the scheme "{scheme.name}" has no label for the rest of the brain: leave out --brain-from')
    return scheme.rest


def _check_brain(values: set[int], present: set[int], scheme: LabelScheme, read_as: Numbering) -> list[str]:
    """Refuses a mask (``values`` of the scheme, ``present`` in the file) that is nothing but tumour."""
    rest = scheme.rest
    others = set(scheme.values) - {label.value for label in scheme.tumour}
    if others and not values & others:
        needed = f"label {rest.value}, {rest.name.lower()}" if rest else "every label but tumour"
        mend = "paint it"
        if rest:
            mend += ", or have it filled from any skull-stripped image with --brain-from IMAGE"
        if sum(numbering.explains(present) for numbering in scheme.numberings) > 1:
            mend += ", or say with --labels that the file has another numbering"
        raise MedDPMError(f'there is no brain area ({needed}, is missing; values read as "{read_as.name}"): {mend}')
    if rest and rest.value not in values:
        return [f"{rest.name} (label {rest.value}) is missing: --brain-from IMAGE can fill it"]
    return []


def _odd_extent(labels: np.ndarray, geometry: Geometry) -> list[str]:
    low, high = _extent(labels != 0, geometry)
    if _PLAUSIBLE_EXTENT[0] <= max(high - low) <= _PLAUSIBLE_EXTENT[1]:
        return []
    sides = " x ".join(f"{side:.3g}" for side in high - low)
    return [f"the mask measures {sides} mm, which is not the size of a brain: check the spacing in its header"]


def _tumour_outside(labels: np.ndarray, area: np.ndarray | None, geometry: Geometry, scheme: LabelScheme) -> list[str]:
    """A note if tumour lies outside the brain: outside ``area`` if that is known, else judged by its surroundings."""
    tumour = np.isin(labels, [label.value for label in scheme.tumour])
    outside = outside_brain(tumour, labels) if area is None else np.count_nonzero(tumour & ~area)
    return [f"{describe_volume(outside * geometry.voxel_volume)} of tumour lie outside the brain"] if outside else []
