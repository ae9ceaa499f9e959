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
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import read_volume, volume_stem
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.brain_area import brain_area, describe_volume, outside_brain
from MedDPMLib.masks.dicom_seg import is_dicom_segmentation, read_dicom_segments
from MedDPMLib.masks.nesting import Nesting
from MedDPMLib.masks.numberings import Numbering, numberings, other_parts, shows_brain
from MedDPMLib.masks.readings import Reading, choose_reading, judge, read_as
from MedDPMLib.masks.said import explaining, said_numbering, segment_labels
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.masks.seg_nrrd import holds_segments, read_segments
from MedDPMLib.masks.size import odd_size
from MedDPMLib.masks.values import count_values, volumes_by_value, whole_numbers

#: Part of a tumor that may lie outside the brain unless the label convention was given.
_MOST_OUTSIDE = 0.5


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
        numbering: str | Numbering | None = None,
        said_by: str = "as requested",
        expected: str | None = None,
        brain_from: str | os.PathLike | Volume | None = None,
    ) -> Mask:
        """Checks a ``volume`` of labels and brings it into the values of ``scheme``.

        ``numbering`` says what its values mean (``scheme.own_numbering`` for the scheme's own; else see
        :func:`MedDPMLib.masks.said.asked_numbering`), ``said_by`` for the notes how that is known; without it volumes,
        places and ``name`` say, and which numbering is ``expected`` (:func:`MedDPMLib.masks.readings.choose_reading`).
        ``brain_from`` is a skull-stripped image, in any geometry, whose foreground becomes the rest of the brain where
        no label is.

        Raises :class:`MedDPMLib.masks.readings.AmbiguousLabels` for values that can mean different things or none, and
        :class:`MedDPMError` for an empty mask, values that are not whole, negative or outside the scheme, a mask
        without a brain area, and an image that does not overlap the mask.
        """
        where = source or name
        try:
            array = whole_numbers(volume.array)
            notes = [*volume.notes]
            if not np.array_equal(array, volume.array):
                notes.append("its values are not quite whole, and were rounded")
            volumes = volumes_by_value(array, volume.geometry.voxel_volume)
            if not volumes:
                raise MedDPMError("the mask is empty: paint something, or start from a template")
            if numbering is None:
                reading, why = choose_reading(array, volume.geometry, volumes, scheme, name, expected)
            else:
                said, why = explaining(scheme, numbering, volumes), said_by
                # What was painted as the scheme's own label is that; what is said of a file can be of another.
                is_own = numbering == scheme.own_numbering
                reading = (
                    read_as(said, volumes, scheme) if is_own else judge(said, array, volume.geometry, volumes, scheme)
                )
            labels = _translated(reading, array, scheme)
            notes.append(f'values read as "{reading.numbering.name}", {why}: {reading.describe()}')
            notes += [f"this is not plausible: {doubt}" for doubt in reading.doubts]
            if reading.nesting is Nesting.WRONG:
                notes.append("this is not plausible: the parts of its tumor do not lie as those of a glioma do")
            area = None
            if brain_from is not None:
                area, note = brain_area(brain_from, volume.geometry)
                labels[area & (labels == 0)] = _rest_of(scheme).value
                notes.append(note)
            notes += _check_brain(
                set(np.flatnonzero(count_values(labels)[1:]) + 1), set(volumes), scheme, reading.numbering
            )
            notes += _tumor_outside(labels, area, volume.geometry, scheme, numbering is not None)
        except MedDPMError as error:
            raise error.at(where) from error
        notes += [odd] if (odd := odd_size(labels, volume.geometry, scheme)) else []
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
    numbering: str | Numbering | None = None,
    brain_from: str | os.PathLike | Volume | None = None,
    geometry: str | None = None,
) -> Mask:
    """Reads the mask in ``path``; see :meth:`Mask.from_volume`.

    In a segmentation of 3D Slicer (``.seg.nrrd``) or of DICOM terminology and names say which label a segment is, for
    other files a table beside them (``masks/label_tables.py``), unless ``numbering`` is given, which can also be the
    path of such a table or say what segments are (:func:`MedDPMLib.masks.said.segment_labels`). ``geometry`` is that of
    :func:`MedDPMLib.imaging.io.read_volume`, for the image too.
    """
    path = Path(path)
    volume, numbering, said_by = read_labels(path, scheme, numbering=numbering, geometry=geometry)
    if geometry is not None and isinstance(brain_from, (str, os.PathLike)):
        brain_from = read_volume(brain_from, geometry=geometry)
    return Mask.from_volume(
        volume,
        scheme,
        name=volume_stem(path),
        source=str(path),
        numbering=numbering,
        said_by=said_by,
        brain_from=brain_from,
    )


def read_labels(
    path: Path, scheme: LabelScheme, *, numbering: str | Numbering | None = None, geometry: str | None = None
) -> tuple[Volume, str | Numbering | None, str]:
    """The labels in ``path``, the numbering of their values if it is known, and how it is known; see :func:`read_mask`.

    The one place where a file of labels is opened: generating, completing and preparing go through it.
    """
    said = segment_labels(scheme, numbering) if isinstance(numbering, str) else None
    by_name = "by the names of its segments" if said is None else "by the names of its segments and as requested"
    if is_dicom_segmentation(path):
        by_code = "by the codes of its segments" if said is None else "by the codes of its segments and as requested"
        return read_dicom_segments(path, scheme, said), scheme.own_numbering, by_code
    if (numbering is None or said is not None) and holds_segments(path):
        return read_segments(path, scheme, said), scheme.own_numbering, by_name
    volume = read_volume(path, geometry=geometry)
    if numbering is None and (found := said_numbering(path, volume, scheme)):
        return volume, *found
    return volume, numbering, "as requested"


# Checking --------------------------------------------------------------------------------------------


def _translated(reading: Reading, array: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """The labels, uint8, that ``reading`` makes of ``array``; refused if ``scheme`` has no label for one of them."""
    values = [value for _, values, _ in reading.volumes for value in values]
    foreign = reading.numbering.foreign(values)
    if foreign:
        volumes = {value: volume for _, values, volume in reading.volumes for value in values}
        listed = ", ".join(
            f"{name[:1].lower() + name[1:]} ({value}, {describe_volume(volumes[value])})"
            for value, name in list(foreign.items())[:10]
        )
        known = dict(reading.numbering.values)
        as_said = ",".join(
            f"{value}={scheme.label_by_value(known[value]).name.lower() if value in known else '...'}"
            for value in values[:8]
        )
        raise MedDPMError(
            f'it holds {listed}, for which the scheme "{scheme.name}" has no label ({scheme.describe_labels()})',
            remedy=f'assign them to labels of the scheme, as in "{as_said}", or use another model',
            code="unknown-labels",
            example=as_said,
        )
    return reading.numbering.translate(array)


def _rest_of(scheme: LabelScheme):
    if scheme.rest is None:
        raise MedDPMError(
            f'the scheme "{scheme.name}" has no label for the rest of the brain',
            remedy="do not fill it from an image",
            code="no-rest-label",
        )
    return scheme.rest


def _check_brain(values: set[int], present: set[int], scheme: LabelScheme, read_as: Numbering) -> list[str]:
    """Refuses a mask (``values`` of the scheme, ``present`` in the file) that is nothing but tumor and cavity."""
    rest = scheme.rest
    others = {label.value for label in scheme.labels if label.role != "tumor" and label.name not in other_parts()}
    if others and not values & others:
        needed = f"label {rest.value}, {rest.name.lower()}" if rest else "every label but tumor"
        around = "brain area" if shows_brain(scheme) else "label around the tumor"
        fact = f'there is no {around} ({needed}, is missing; values read as "{read_as.name}")'
        if not rest:
            raise MedDPMError(fact, remedy="paint it")
        raise MedDPMError(
            fact,
            remedy="paint it, or fill it from any skull-stripped image (brain_from)",
            code="no-brain-area-or-other-convention"
            if sum(numbering.explains(present) for numbering in numberings(scheme)) > 1
            else "no-brain-area",
        )
    if rest and rest.value not in values:
        return [f"{rest.name} (label {rest.value}) is missing: it can be filled from a skull-stripped image"]
    return []


def _tumor_outside(
    labels: np.ndarray, area: np.ndarray | None, geometry: Geometry, scheme: LabelScheme, is_said: bool
) -> list[str]:
    """A note if tumor lies outside the brain: outside ``area`` if that is known, else judged by its surroundings.

    Most of it outside is refused, unless it ``is_said`` that it is a tumor. Of other organs nothing is known.
    """
    if area is None and not shows_brain(scheme):
        return []
    tumor = np.isin(labels, [label.value for label in scheme.tumor])
    outside = outside_brain(tumor, labels) if area is None else np.count_nonzero(tumor & ~area)
    if not is_said and outside > _MOST_OUTSIDE * np.count_nonzero(tumor):
        raise MedDPMError(
            f"{describe_volume(outside * geometry.voxel_volume)} of what would be its tumor lie outside the brain",
            remedy="check whether they belong together, or define each value",
        )
    return [f"{describe_volume(outside * geometry.voxel_volume)} of tumor lie outside the brain"] if outside else []
