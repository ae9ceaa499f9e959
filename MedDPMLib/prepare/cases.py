"""How does one case come onto the dataset's grid, and is it valid?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.normalize import normalize_onto
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.brain_area import describe_volume
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask, read_labels
from MedDPMLib.masks.numberings import Numbering, shows_brain
from MedDPMLib.masks.readings import AmbiguousLabels
from MedDPMLib.masks.said import named_by
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.prepare.sources import CaseFiles, file_stem
from MedDPMLib.recipes.standard import Standard

_ANATOMY = load_scheme("anatomy")

#: Part of the faces of a skull-stripped image that is background at least.
_LEAST_BACKGROUND = 0.5

#: So many voxels below the background for one above it are not yet part of the brain.
_MOST_RINGING = 0.05

#: How many voxels two headers of one grid may be apart: what programs round.
_ROUNDED = 0.1

#: What is smaller, in mm^3, is no head.
_SMALLEST_HEAD = 300_000.0

_NO_STRUCTURES = "shows no structures of the brain: give the folder of CASE_anatomy.nii.gz with --anatomy"


@dataclass(frozen=True)
class PreparedCase:
    """``images`` (by modality, float32 in [-1, 1]) and ``labels`` (uint8) on the dataset's grid, and what was ``found``
    (a row of the table: text by heading)."""

    images: Mapping[str, Volume]
    labels: Volume
    found: Mapping[str, str]


def prepare_case(
    case: CaseFiles,
    standard: Standard,
    scheme: LabelScheme,
    *,
    anatomy: Path | None,
    numbering: str | None,
    normalization: str,
    geometry: str | None = None,
) -> PreparedCase:
    """Reads, checks and brings ``case`` onto the grid of ``standard``; :class:`MedDPMError` says what is wrong with it.

    ``anatomy`` is the folder with the structures of each case (``CASE_anatomy.nii.gz``), for the anatomy scheme.
    ``numbering`` says how segmentations number their labels; without it layout and values say.
    ``geometry`` is that of :func:`MedDPMLib.imaging.io.read_volume`. Everything is turned to
    the grid's orientation first: how a file stores its axes makes no difference.
    """
    if case.problem:
        raise MedDPMError(case.problem)
    parts = case.components or {}
    stored = {
        modality: read_volume(path, geometry=geometry, component=parts.get(modality))
        for modality, path in case.images.items()
    }
    segmentation, numbering, said_by = _segmentation(
        case, load_scheme("brats") if anatomy else scheme, numbering, geometry
    )
    first, source = next(iter(case.images.values())), next(iter(stored.values())).geometry
    for path, volume in zip((*case.images.values(), case.segmentation), (*stored.values(), segmentation), strict=True):
        if volume:
            _check_grid(volume, source, path, first)
    # What header rounding made of one grid is one grid.
    stored = {modality: Volume(volume.array, source, volume.notes) for modality, volume in stored.items()}
    segmentation = Volume(segmentation.array, source, segmentation.notes) if segmentation else None
    orientation = standard.grid.orientation
    images = {modality: reoriented(volume, orientation) for modality, volume in stored.items()}
    segmentation = reoriented(segmentation, orientation) if segmentation else None
    labels, notes = _labels(case, images, segmentation, standard, scheme, anatomy, numbering, said_by)
    mask = Mask(labels, scheme, case.name)
    if not labels.array.any():
        raise MedDPMError("its mask is empty: nothing in it is labeled")
    fitted = fit(mask, standard.grid)
    cut = sum(fitted.outside.values())
    prepared, found = {}, {}
    # Without a label for all the rest, what has no label is part of the picture.
    foreground = labels.array > 0 if scheme.rest else np.ones_like(labels.array, bool)
    for modality, image in images.items():
        try:
            prepared[modality] = normalize_onto(image, foreground, fitted.geometry, normalization)
        except MedDPMError as error:
            raise MedDPMError(f"{case.images[modality]}: {error}") from None
        values = image.array[foreground]
        found |= {f"{modality} lowest": f"{values.min():g}", f"{modality} highest": f"{values.max():g}"}
    counts = np.bincount(fitted.labels.ravel(), minlength=256)
    row = {
        "size": " x ".join(map(str, source.size)),
        "spacing": " x ".join(f"{s:.4g}" for s in source.spacing),
        "orientation": source.orientation,
        **{f"{label.name} (voxels)": str(counts[label.value]) for label in scheme.labels},
        **found,
        "cut off (mm^3)": f"{cut:.6g}",
        "notes": "; ".join(dict.fromkeys((*notes, *fitted.notes))),
    }
    return PreparedCase(prepared, Volume(fitted.labels, fitted.geometry), row)


def _check_grid(volume: Volume, grid: Geometry, path: Path, first: Path) -> None:
    if not volume.geometry.is_close(grid, _ROUNDED):
        raise MedDPMError(f"{path} and {first} do not lie on one grid: resample one of them first")


def reoriented(volume: Volume, orientation: str) -> Volume:
    """The same voxels with axes that run as ``orientation`` says, each to the nearest: nothing is interpolated."""
    stored = volume.geometry
    turn = ornt_transform(axcodes2ornt(stored.orientation), axcodes2ornt(orientation))
    array = apply_orientation(volume.array.T, turn).T
    geometry = Geometry(array.shape[::-1], stored.ijk_to_ras @ inv_ornt_aff(turn, stored.size))
    return Volume(np.ascontiguousarray(array), geometry, volume.notes)


# Labels ----------------------------------------------------------------------------------------------


def _labels(
    case: CaseFiles,
    images: Mapping[str, Volume],
    segmentation: Volume | None,
    standard: Standard,
    scheme: LabelScheme,
    anatomy: Path | None,
    numbering: str | Numbering | None,
    said_by: str,
) -> tuple[Volume, Sequence[str]]:
    """The case's label map in the values of ``scheme`` on its own grid, and notes."""
    if anatomy is not None:
        path = anatomy / f"{case.name}_anatomy.nii.gz"
        structures = reoriented(read_volume(path), standard.grid.orientation)
        modality, image = next(iter(images.items()))
        _check_grid(structures, image.geometry, path, case.images[modality])
        composed = compose_anatomy(
            structures,
            list(images.values()),
            segmentation,
            numbering=numbering,
            name=file_stem(case.segmentation),
            said_by=said_by,
        )
        return composed, composed.notes
    if segmentation is None:
        image = next(iter(case.images.values()))
        raise MedDPMError(f"{image} exists, but its mask {case.segmentation} is missing")
    brain = _brain(list(images.values())) if standard.skull_stripped else None
    if not segmentation.array.any():
        if brain is None:
            raise MedDPMError(f"{case.segmentation} is empty: nothing can be learned from it")
        labels = np.where(brain, scheme.require_rest().value, 0).astype(np.uint8)
        return _with_structures(Volume(labels, segmentation.geometry), scheme), ("no tumor",)
    try:
        mask = Mask.from_volume(
            segmentation,
            scheme,
            name=file_stem(case.segmentation),
            source=str(case.segmentation),
            numbering=numbering,
            said_by=said_by,
            brain_from=None if brain is None else Volume(brain.astype(np.uint8), segmentation.geometry),
        )
    except AmbiguousLabels as error:
        structures = {scheme.label_by_value(value).name for value in _structures(scheme)}
        if structures and not any(reading.parts & structures for reading in error.readings):
            raise MedDPMError(f"its mask {_NO_STRUCTURES}") from error
        raise
    labels = mask.volume.array
    if brain is None:
        _check_head(labels, segmentation.geometry, scheme, case)
    else:
        # Not what was a hole in the brain: the published network's masks leave it out.
        labels[(segmentation.array == 0) & ~brain] = 0
    notes = [note for note in mask.notes if "brain area" not in note]
    return _with_structures(Volume(labels, segmentation.geometry), scheme), notes


def _segmentation(
    case: CaseFiles, scheme: LabelScheme, numbering: str | None, geometry: str | None
) -> tuple[Volume | None, str | Numbering | None, str]:
    """The segmentation as its file has it, the numbering of its values, if that is known, and how.

    The layout of the folder says it first, then the file, or a table beside it.
    """
    if not case.segmentation.is_file():
        return None, numbering, ""
    if case.labels is not None and numbering is None:
        volume, table = read_volume(case.segmentation, geometry=geometry), case.source / "dataset.json"
        return volume, named_by(table, case.labels, case.segmentation, volume, scheme), f"by {table.name}"
    return read_labels(case.segmentation, scheme, numbering=numbering, geometry=geometry)


def _check_head(labels: np.ndarray, geometry: Geometry, scheme: LabelScheme, case: CaseFiles) -> None:
    """Refuses a "head" that is no head: values 1 and 2 are the parts of a tumor in many files."""
    rest = scheme.rest
    if rest is None or not shows_brain(scheme):
        return
    volume = np.count_nonzero(labels == rest.value) * geometry.voxel_volume
    if volume < _SMALLEST_HEAD:
        raise MedDPMError(
            f"{case.segmentation} has a {rest.name.lower()} (value {rest.value}) of only"
            f" {describe_volume(volume)}: these are labels of another scheme, or the spacing in its header is wrong"
        )


def _structures(scheme: LabelScheme) -> list[int]:
    return [label.value for label in scheme.labels if label.role == "structure"]


def _with_structures(labels: Volume, scheme: LabelScheme) -> Volume:
    """``labels``, if they have any of the structures that ``scheme`` has."""
    if _structures(scheme) and not np.isin(labels.array, _structures(scheme)).any():
        raise MedDPMError(f"its mask {_NO_STRUCTURES}")
    return labels


def _brain(images: Sequence[Volume]) -> np.ndarray:
    """Where any of the skull-stripped ``images`` is not background, the value most common on its faces."""
    brain = np.zeros(images[0].array.shape, bool)
    for number, image in enumerate(images, start=1):
        faces = np.concatenate([image.array.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
        values, counts = np.unique(faces, return_counts=True)
        background = values[counts.argmax()]
        if counts.max() < _LEAST_BACKGROUND * faces.size:
            raise MedDPMError(
                f"image {number} of {len(images)} has no empty background around the brain: use a skull-stripped one"
            )
        above, below = image.array > background, image.array < background
        brain |= above
        # A little below the background is what interpolation leaves around a brain; much is a brain scaled to mean 0.
        if np.count_nonzero(below) > _MOST_RINGING * np.count_nonzero(above):
            brain |= below
    return brain


def compose_anatomy(
    anatomy: Volume,
    images: Sequence[Volume],
    segmentation: Volume | None,
    *,
    numbering: str | Numbering | None = None,
    name: str = "mask",
    said_by: str = "as requested",
) -> Volume:
    """One label map of the anatomy scheme out of structures, skull-stripped ``images`` and a tumor ``segmentation``.

    ``anatomy`` has the structures' values. Where any image is brighter than its background (the value most common on
    its faces) and there is no structure, it is the rest of the brain. The tumor goes on top: what a network takes for
    anatomy inside a tumor is wrong. What its values mean is said by ``numbering``, or else by themselves and ``name``,
    see :meth:`Mask.from_volume`; the notes tell. All lie on one grid, or :class:`MedDPMError` is raised.
    """
    labels, notes = anatomy.array.astype(np.uint8), ()
    for volume in (*images, *([segmentation] if segmentation else [])):
        if not volume.geometry.is_close(anatomy.geometry, _ROUNDED):
            raise MedDPMError("images, anatomy and tumor segmentation are not on the same grid: resample them first")
    labels[_brain(images) & (labels == 0)] = _ANATOMY.require_rest().value
    if segmentation is not None and segmentation.array.any():
        # The brain is known already: what is asked of the mask here is only what its values mean.
        brats = load_scheme("brats")
        tumor = Mask.from_volume(
            segmentation, brats, name=name, numbering=numbering, said_by=said_by, brain_from=images[0]
        )
        notes = tuple(note for note in tumor.notes if "brain area" not in note)
        for label in tumor.scheme.tumor:
            labels[tumor.volume.array == label.value] = _ANATOMY.require_label(label.name).value
    return Volume(labels, anatomy.geometry, notes)
