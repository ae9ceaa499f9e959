"""How does one case come onto the dataset's grid, and is it sound?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.normalize import normalise_onto
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.brain_area import describe_volume
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.prepare.sources import BRATS, MED_DDPM, CaseFiles
from MedDPMLib.recipes.standard import Standard

_ANATOMY = load_scheme("anatomy")

#: Part of the faces of a skull-stripped image that is background at least.
_LEAST_BACKGROUND = 0.5

#: So many voxels below the background for one above it are not yet part of the brain.
_MOST_RINGING = 0.05

#: A case of which the grid cuts off more than this part is not the brain that the grid was made for.
_MOST_CUT = 0.05

#: What is smaller, in mm^3, is no head.
_SMALLEST_HEAD = 300_000.0

_NO_STRUCTURES = "shows no structures of the brain: give the folder of CASE_anatomy.nii.gz with --anatomy"

_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


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
    normalisation: str,
) -> PreparedCase:
    """Reads, checks and brings ``case`` onto the grid of ``standard``; :class:`MedDPMError` says what is wrong with it.

    ``anatomy`` is the folder with the structures of each case (``CASE_anatomy.nii.gz``), for the anatomy scheme.
    ``numbering`` says how segmentations number their labels; without it layout and values say. Everything is turned to
    the grid's orientation first: how a file stores its axes makes no difference.
    """
    if case.problem:
        raise MedDPMError(case.problem)
    stored = {modality: read_volume(path) for modality, path in case.images.items()}
    segmentation = read_volume(case.segmentation) if case.segmentation.is_file() else None
    first, source = next(iter(case.images.values())), next(iter(stored.values())).geometry
    for path, volume in zip((*case.images.values(), case.segmentation), (*stored.values(), segmentation), strict=True):
        if volume and not volume.geometry.is_close(source):
            raise MedDPMError(f"{path} and {first} do not lie on one grid: resample one of them first")
    orientation = standard.grid.orientation
    images = {modality: reoriented(volume, orientation) for modality, volume in stored.items()}
    segmentation = reoriented(segmentation, orientation) if segmentation else None
    labels, notes = _labels(case, images, segmentation, standard, scheme, anatomy, numbering)
    mask = Mask(labels, scheme, case.name)
    if not labels.array.any():
        raise MedDPMError("its mask is empty: there is no brain in it")
    fitted = fit(mask, standard.grid)
    cut, total = sum(fitted.outside.values()), np.count_nonzero(labels.array) * labels.geometry.voxel_volume
    if cut > _MOST_CUT * total:
        raise MedDPMError(
            f"{describe_volume(cut)} of {describe_volume(total)} lie outside the dataset's grid: check the spacing in"
            " its header, or whether the mask holds more than a brain"
        )
    prepared, found = {}, {}
    foreground = labels.array > 0
    for modality, image in images.items():
        try:
            prepared[modality] = normalise_onto(image, foreground, fitted.geometry, normalisation)
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


def reoriented(volume: Volume, orientation: str) -> Volume:
    """The same voxels with axes that run as ``orientation`` says, each to the nearest: nothing is interpolated."""
    letters = volume.geometry.orientation
    turn, array_axes = np.zeros((4, 4)), [0, 0, 0]
    turn[3, 3] = 1
    flipped = []
    for target, letter in enumerate(orientation):
        source = next(s for s, other in enumerate(letters) if other in (letter, _OPPOSITE[letter]))
        array_axes[2 - target] = 2 - source
        turn[source, target] = 1
        if letters[source] != letter:
            turn[source, target], turn[source, 3] = -1, volume.geometry.size[source] - 1
            flipped.append(2 - target)
    array = np.flip(volume.array.transpose(array_axes), flipped)
    geometry = Geometry(array.shape[::-1], volume.geometry.ijk_to_ras @ turn)
    return Volume(np.ascontiguousarray(array), geometry, volume.notes)


# Labels ----------------------------------------------------------------------------------------------


def _labels(
    case: CaseFiles,
    images: Mapping[str, Volume],
    segmentation: Volume | None,
    standard: Standard,
    scheme: LabelScheme,
    anatomy: Path | None,
    numbering: str | None,
) -> tuple[Volume, Sequence[str]]:
    """The case's label map in the values of ``scheme`` on its own grid, and notes."""
    if numbering is None and segmentation is not None and case.labels is not None:
        segmentation, numbering = _translated(segmentation, case), scheme.own_numbering
    elif segmentation is not None and numbering is None and (anatomy or scheme.name == "brats"):
        _check_brats(segmentation, case)
    if anatomy is not None:
        path = anatomy / f"{case.name}_anatomy.nii.gz"
        structures = reoriented(read_volume(path), standard.grid.orientation)
        modality, image = next(iter(images.items()))
        if not structures.geometry.is_close(image.geometry):
            raise MedDPMError(f"{path} and {case.images[modality]} do not lie on one grid: resample one of them first")
        if numbering is None and segmentation is not None:
            numbering = _evident_numbering(segmentation, load_scheme("brats"), case)
        return compose_anatomy(structures, list(images.values()), segmentation, numbering=numbering), ()
    if segmentation is None:
        image = next(iter(case.images.values()))
        raise MedDPMError(f"{image} is there, and its mask {case.segmentation} is missing")
    brain = _brain(list(images.values())) if standard.skull_stripped else None
    if not segmentation.array.any():
        if brain is None:
            raise MedDPMError(f"{case.segmentation} is empty: there is nothing to learn from it")
        labels = np.where(brain, scheme.rest.value, 0).astype(np.uint8)
        return _with_structures(Volume(labels, segmentation.geometry), scheme), ("no tumour",)
    if numbering is None:
        numbering = _evident_numbering(segmentation, scheme, case)
    mask = Mask.from_volume(
        segmentation,
        scheme,
        name=case.name,
        source=str(case.segmentation),
        numbering=numbering,
        brain_from=None if brain is None else Volume(brain.astype(np.uint8), segmentation.geometry),
    )
    labels = mask.volume.array
    if brain is None:
        _check_head(labels, segmentation.geometry, scheme, case)
    else:
        # Not what was a hole in the brain: the published network's masks leave it out.
        labels[(segmentation.array == 0) & ~brain] = 0
    notes = [note for note in mask.notes if "brain area" not in note]
    return _with_structures(Volume(labels, segmentation.geometry), scheme), notes


def _translated(segmentation: Volume, case: CaseFiles) -> Volume:
    """``segmentation`` with what its layout says that its values mean."""
    values = np.unique(segmentation.array)
    if strange := [f"{value:g}" for value in values if value and value not in case.labels]:
        raise MedDPMError(
            f"{case.segmentation} has the values {', '.join(strange[:10])}, which dataset.json does not name"
        )
    table = np.zeros(int(values.max()) + 1, np.uint8)
    for value in values[values > 0]:
        table[int(value)] = case.labels[int(value)]
    return Volume(table[segmentation.array.astype(np.intp)], segmentation.geometry, segmentation.notes)


def _check_head(labels: np.ndarray, geometry: Geometry, scheme: LabelScheme, case: CaseFiles) -> None:
    """Refuses a "head" that is no head: values 1 and 2 are the parts of a tumour in many files."""
    volume = np.count_nonzero(labels == scheme.rest.value) * geometry.voxel_volume
    if volume < _SMALLEST_HEAD:
        raise MedDPMError(
            f"{case.segmentation} has a {scheme.rest.name.lower()} (value {scheme.rest.value}) of only"
            f" {describe_volume(volume)}: these are labels of another scheme, or the spacing in its header is wrong"
        )


def _check_brats(segmentation: Volume, case: CaseFiles) -> None:
    """Refuses a value that is none of BraTS's: it could be one of another numbering, and the tumour be lost."""
    highest = segmentation.array.max()
    if case.layout in (BRATS, MED_DDPM) and highest > 4:
        raise MedDPMError(f"{case.segmentation} has the value {highest:g}: BraTS's labels are 1 to 4")


def _evident_numbering(segmentation: Volume, scheme: LabelScheme, case: CaseFiles) -> str | None:
    """The numbering that more than the values present speaks for; None if these have to do."""
    values, counts = np.unique(segmentation.array, return_counts=True)
    volumes = {v: n * segmentation.geometry.voxel_volume for v, n in zip(values.tolist(), counts, strict=True) if v}
    if _structures(scheme) and not scheme.numbering(scheme.own_numbering).is_evident(volumes):
        raise MedDPMError(f"its mask {_NO_STRUCTURES}")
    # In Med-DDPM's files 4 is the rest of the brain, in BraTS's the enhancing tumour: where 3 is absent, size tells.
    limits = [limit for numbering in scheme.numberings for limit in numbering.largest_mm3]
    if case.layout == MED_DDPM and any(volumes.get(value, 0) > limit for value, limit in limits):
        return "med-ddpm"
    return None


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
    anatomy: Volume, images: Sequence[Volume], segmentation: Volume | None, *, numbering: str | None = None
) -> Volume:
    """One label map of the anatomy scheme out of structures, skull-stripped ``images`` and a tumour ``segmentation``.

    ``anatomy`` has the structures' values. Where any image is brighter than its background (the value most common on
    its faces) and there is no structure, it is the rest of the brain. The tumour, in any BraTS numbering (or the one
    of the scheme brats that ``numbering`` names), goes on top: what a network takes for anatomy inside a tumour is
    wrong.
    All lie on one grid, or :class:`MedDPMError` is raised.
    """
    labels = anatomy.array.astype(np.uint8)
    for volume in (*images, *([segmentation] if segmentation else [])):
        if not volume.geometry.is_close(anatomy.geometry):
            raise MedDPMError("images, anatomy and tumour segmentation do not lie on one grid: resample them first")
    labels[_brain(images) & (labels == 0)] = _ANATOMY.rest.value
    if segmentation is not None and segmentation.array.any():
        # The brain is known already: what is asked of the mask here is only what its values mean.
        tumour = Mask.from_volume(segmentation, load_scheme("brats"), numbering=numbering, brain_from=images[0])
        for label in tumour.scheme.tumour:
            labels[tumour.volume.array == label.value] = _ANATOMY.label_by_name(label.name).value
    return Volume(labels, anatomy.geometry)
