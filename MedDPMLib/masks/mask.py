"""Is this a mask the model can use?"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid, extent
from MedDPMLib.imaging.io import read_volume, volume_stem
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.brain_area import brain_area, describe_volume, outside_brain
from MedDPMLib.masks.schemes import LabelScheme, Numbering
from MedDPMLib.masks.seg_nrrd import holds_segments, read_segments

#: No file's numbering goes higher; more is an image or a parcellation of another kind.
_HIGHEST_VALUE = 65_535

#: Longest side, in millimetres, that a brain or head can have; outside of this the spacing is doubted.
_PLAUSIBLE_EXTENT = (60.0, 300.0)


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
            counts = count_values(array)
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
            notes += _check_brain(set(np.flatnonzero(count_values(labels)[1:]) + 1), present, scheme, read_as)
        except MedDPMError as error:
            raise error.at(where) from error
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
    def fitted(self) -> dict[Grid, Any]:
        """What :func:`MedDPMLib.masks.fit.fit` computed for each grid: a mask is often used for several samples."""
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


def count_values(array: np.ndarray) -> np.ndarray:
    """How often each value of an unsigned ``array`` occurs; section by section, so that memory stays small."""
    counts = np.zeros(np.iinfo(array.dtype).max + 1, np.int64)
    for section in array:
        found = np.bincount(section.ravel())
        counts[: len(found)] += found
    return counts


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
        raise MedDPMError(
            f'the scheme "{scheme.name}" has no label for the rest of the brain',
            remedy="do not fill it from an image",
            code="no-rest-label",
        )
    return scheme.rest


def _check_brain(values: set[int], present: set[int], scheme: LabelScheme, read_as: Numbering) -> list[str]:
    """Refuses a mask (``values`` of the scheme, ``present`` in the file) that is nothing but tumour."""
    rest = scheme.rest
    others = set(scheme.values) - {label.value for label in scheme.tumour}
    if others and not values & others:
        needed = f"label {rest.value}, {rest.name.lower()}" if rest else "every label but tumour"
        fact = f'there is no brain area ({needed}, is missing; values read as "{read_as.name}")'
        if not rest:
            raise MedDPMError(fact, remedy="paint it")
        raise MedDPMError(
            fact,
            remedy="paint it, or fill it from any skull-stripped image (brain_from)",
            code="no-brain-area-or-other-convention"
            if sum(numbering.explains(present) for numbering in scheme.numberings) > 1
            else "no-brain-area",
        )
    if rest and rest.value not in values:
        return [f"{rest.name} (label {rest.value}) is missing: it can be filled from a skull-stripped image"]
    return []


def _odd_extent(labels: np.ndarray, geometry: Geometry) -> list[str]:
    low, high = extent(labels != 0, geometry)
    if _PLAUSIBLE_EXTENT[0] <= max(high - low) <= _PLAUSIBLE_EXTENT[1]:
        return []
    sides = " x ".join(f"{side:.3g}" for side in high - low)
    return [f"the mask measures {sides} mm, which is not the size of a brain: check the spacing in its header"]


def _tumour_outside(labels: np.ndarray, area: np.ndarray | None, geometry: Geometry, scheme: LabelScheme) -> list[str]:
    """A note if tumour lies outside the brain: outside ``area`` if that is known, else judged by its surroundings."""
    tumour = np.isin(labels, [label.value for label in scheme.tumour])
    outside = outside_brain(tumour, labels) if area is None else np.count_nonzero(tumour & ~area)
    return [f"{describe_volume(outside * geometry.voxel_volume)} of tumour lie outside the brain"] if outside else []
