"""Which labels are painted? Segments of a segmentation node to the labels of a scheme.

A table says which segment (by its ID) is which label (by its value). Everything is read segment by segment on
the segmentation's own reference geometry: Slicer's export to one label map lets the last segment win.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.brain_area import describe_volume
from MedDPMLib.masks.numberings import label_for, label_named
from MedDPMLib.masks.regions import lone_regions
from MedDPMLib.masks.schemes import Label, LabelScheme, load_scheme, scheme_names
from MedDPMLib.scene.images import empty_image, extent_geometry, image_array, image_geometry, world_matrix

_CONVERTER = slicer.vtkSegmentationConverter

#: Tag of a segment, followed by a scheme's name: the value of the label that the user chose for it.
_LABEL_TAG = "MedDPM.label."

#: Attribute of a segmentation, followed by a scheme's name: how the user read its numbers.
_NOTE = "MedDPM.reading."

#: Largest relative deviation from right angles and from whole voxels that counts as rounding.
_EXACT = 1e-4

#: The rank of the background: behind that of every segment.
_NOTHING = 255

#: Points along each side of a box that is sent through a transform that bends it.
_SAMPLES = 9

#: Words in the name of a segment that is a tumor, without saying which part of it.
_TUMOR_WORDS = frozenset("tumor tumour gtv lesion mass core glioma glioblastoma gbm metastasis met cancer".split())

#: At most this many names of segments are listed in a message.
_LISTED = 3


# The table -------------------------------------------------------------------------------------------


def guess_table(segmentation: slicer.vtkMRMLSegmentationNode, scheme: LabelScheme) -> dict[str, int]:
    """Segment ID to label value for the segments that are recognized: by their terminology first, by name second.

    White matter is the rest of the brain in a scheme that does not distinguish it (:func:`_recognize_part`); such
    segments come last, behind one that is the label itself. A "tumor core" or a "whole tumor" without a segment for
    what lies inside is left out: it can be any part of a tumor.
    """
    core = segmentation.GetSegmentation()
    segments = {id_: core.GetSegment(id_) for id_ in core.GetSegmentIDs()}
    table = {}
    for recognize in (_recognize, _recognize_part):
        found = {id_: recognize(segment, scheme) for id_, segment in segments.items() if id_ not in table}
        table.update({id_: label.value for id_, label in found.items() if label is not None})
    for id_ in _lone(segments, table, scheme):
        del table[id_]
    return table


def table_of(segmentation: slicer.vtkMRMLSegmentationNode, scheme: LabelScheme) -> dict[str, int]:
    """Segment ID to label value: what the user chose (:func:`set_label`), else what :func:`guess_table` recognizes."""
    core, table = segmentation.GetSegmentation(), guess_table(segmentation, scheme)
    for id_ in core.GetSegmentIDs():
        chosen = vtk.reference("")
        if core.GetSegment(id_).GetTag(_LABEL_TAG + scheme.name, chosen):
            table.pop(id_, None)
            if int(chosen.get()) in scheme.values:
                table[id_] = int(chosen.get())
    return table


def set_label(segmentation: slicer.vtkMRMLSegmentationNode, segment_id: str, scheme: LabelScheme, value: int) -> None:
    """Makes the label ``value`` of ``scheme`` (0: none) what the segment stands for; kept with the segment."""
    segmentation.GetSegmentation().GetSegment(segment_id).SetTag(_LABEL_TAG + scheme.name, str(value))
    segmentation.RemoveAttribute(_NOTE + scheme.name)  # it says what the labels were before


def set_note(segmentation: slicer.vtkMRMLSegmentationNode, scheme: LabelScheme, note: str) -> None:
    """Keeps the sentence how the numbers of the segments were read for the record of what is generated from them."""
    segmentation.SetAttribute(_NOTE + scheme.name, note)


def missing_labels(table: Mapping[str, int], scheme: LabelScheme) -> tuple[Label, ...]:
    """The labels of ``scheme`` that no segment of ``table`` stands for."""
    return tuple(label for label in scheme.labels if label.value not in table.values())


def unlabeled_segments(
    segmentation: slicer.vtkMRMLSegmentationNode, table: Mapping[str, int], scheme: LabelScheme
) -> list[str]:
    """The painted segments that stand for no label although they were not marked as not used."""
    core, found = segmentation.GetSegmentation(), []
    for id_ in core.GetSegmentIDs():
        decided = id_ in table or core.GetSegment(id_).HasTag(_LABEL_TAG + scheme.name)
        if not decided and any(
            (image_array(layer) == value).any()
            for layer, segments in _layers(segmentation, [id_])
            for value in segments
        ):
            found.append(id_)
    return found


def likely_label(name: str, scheme: LabelScheme) -> Label | None:
    """What a segment called ``name`` may stand for, to be asked about: a "lesion" is some part of the tumor."""
    if known := label_named(name, scheme):
        return known
    words = set(re.split(r"[\W_\d]+", name.casefold()))
    if not words & _TUMOR_WORDS:
        return None
    return next(iter((*scheme.of_tissue("rim"), *scheme.tumor)), None)


def tumor_segments(segmentation: slicer.vtkMRMLSegmentationNode) -> list[str]:
    """The segments that are part of a tumor, in any of the label schemes."""
    tumor = set()
    for name in scheme_names():
        scheme = load_scheme(name)
        values = {label.value for label in scheme.tumor}
        tumor |= {id_ for id_, value in table_of(segmentation, scheme).items() if value in values}
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    return [id_ for id_ in ids if id_ in tumor]


def tumor_center(labels: Volume, scheme: LabelScheme) -> np.ndarray | None:
    """A point (RAS, mm) in the middle of the tumor of ``labels`` (values of ``scheme``); None if there is none."""
    found = np.argwhere(np.isin(labels.array, [label.value for label in scheme.tumor]))
    return labels.geometry.to_ras(found.mean(axis=0)[::-1]) if len(found) else None


def painted_at(
    segmentation: slicer.vtkMRMLSegmentationNode,
    ids: Iterable[str],
    voxels: np.ndarray,
    lattice: Geometry,
    first: Sequence[int],
) -> list[str]:
    """Which of the segments ``ids`` have any of ``voxels`` (k, j, i; boolean), the first at index ``first`` of
    ``lattice``; those on another lattice count as if they had."""
    found, present = [], {}
    for id_ in ids:
        layer = segmentation.GetBinaryLabelmapInternalRepresentation(id_)
        if layer is None or layer.IsEmpty() or layer.GetPointData().GetScalars() is None:
            continue
        if layer not in present:  # most segments share one
            present[layer] = _values_at(layer, voxels, lattice, first)
        values = present[layer]
        if values is None or segmentation.GetSegmentation().GetSegment(id_).GetLabelValue() in values:
            found.append(id_)
    return found


def _values_at(layer, voxels: np.ndarray, lattice: Geometry, first: Sequence[int]) -> set[int] | None:
    """The values of ``layer`` in ``voxels``; None where it lies on another lattice."""
    offset = _offset(image_geometry(layer), lattice)
    if offset is None:
        return None
    array, start = image_array(layer), np.array(first)[::-1] - offset[::-1]
    low = np.maximum(start, 0)
    high = np.maximum(np.minimum(start + voxels.shape, array.shape), low)
    here = array[tuple(map(slice, low, high))]
    there = voxels[tuple(map(slice, low - start, high - start))]
    return set(np.unique(here[there]).tolist())


def fingerprint(segmentation: slicer.vtkMRMLSegmentationNode) -> tuple:
    """What changes with what is painted, and not with names, colors or visibility."""
    core, found = segmentation.GetSegmentation(), []
    for id_ in core.GetSegmentIDs():
        layer = segmentation.GetBinaryLabelmapInternalRepresentation(id_)
        scalars = layer.GetPointData().GetScalars() if layer is not None else None
        changed = (layer.GetMTime(), scalars.GetMTime() if scalars is not None else 0) if layer is not None else ()
        found.append((id_, core.GetSegment(id_).GetLabelValue(), changed))
    return tuple(found)


def _lone(segments: Mapping[str, slicer.vtkSegment], table: Mapping[str, int], scheme: LabelScheme) -> list[str]:
    """The segments that their names alone make a label although they can be several."""
    labels = {
        segment.GetName() or "": scheme.label_by_value(table[id_]) if id_ in table else None
        for id_, segment in segments.items()
    }
    lone = lone_regions(labels)
    return [
        id_
        for id_, segment in segments.items()
        if id_ in table and segment.GetName() in lone and not _by_code(segment, scheme)
    ]


def _by_code(segment: slicer.vtkSegment, scheme: LabelScheme) -> Label | None:
    entry = slicer.vtkSlicerTerminologyEntry()
    if segment.HasTerminology():
        slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(segment.GetTerminology(), entry)
    code = entry.GetTypeObject()
    return scheme.label_by_code(code.GetCodingSchemeDesignator(), code.GetCodeValue()) if code.GetCodeValue() else None


def _recognize(segment: slicer.vtkSegment, scheme: LabelScheme) -> Label | None:
    label = _by_code(segment, scheme)
    # "peritumoral_edema" and "enhancing-tumor" are names, too.
    words = " ".join(re.split(r"[\W_]+", segment.GetName() or ""))
    return label or scheme.label_by_name(segment.GetName() or "") or scheme.label_by_name(words)


def _recognize_part(segment: slicer.vtkSegment, scheme: LabelScheme) -> Label | None:
    """The label of ``scheme`` that holds the segment, a structure which only another scheme distinguishes."""
    for name in scheme_names():
        structure = _recognize(segment, load_scheme(name))
        if structure is not None and (label := label_for(structure.name, scheme)):
            return label
    return label_named(segment.GetName() or "", scheme)


# The labels ------------------------------------------------------------------------------------------


def read_labels(segmentation: slicer.vtkMRMLSegmentationNode, table: Mapping[str, int], scheme: LabelScheme) -> Volume:
    """What is painted, as the values of ``scheme``, uint8, on the segmentation's reference geometry, in RAS.

    Of overlapping segments the scheme's priority decides, whatever their order. Several segments of one label
    are combined, which the notes report. A linear parent transform moves the geometry and leaves every voxel as it
    is; one that bends or shears it has the segments resampled (nearest neighbor).

    Raises :class:`MedDPMError` if ``table`` names a segment or label that does not exist, if the segmentation
    has no reference geometry, and if nothing is painted.
    """
    name = segmentation.GetName()
    _check(table, segmentation, scheme)
    ranks = {value: rank for rank, value in enumerate(scheme.priority)}
    best, geometry, cut = _merge(segmentation, {id_: ranks[value] for id_, value in table.items()})
    labels = np.array([*scheme.priority, *([0] * (_NOTHING + 1 - len(ranks)))], np.uint8)[best]
    if not labels.any():
        text = _('nothing is painted in "{name}": paint something, or start from a template')
        raise MedDPMError(text.format(name=name))
    said = segmentation.GetAttribute(_NOTE + scheme.name)
    notes = ((said,) if said else ()) + _united(segmentation, table, scheme)
    if cut:
        volume = describe_volume(cut * geometry.voxel_volume)
        text = _('{volume} of "{name}" lie outside its reference geometry and are left out')
        notes += (text.format(volume=volume, name=name),)
    return Volume(labels, geometry, notes)


def painted(segmentation: slicer.vtkMRMLSegmentationNode, table: Mapping[str, int], scheme: LabelScheme) -> np.ndarray:
    """Where any segment of ``table`` is (k, j, i), boolean, on the geometry of :func:`read_labels`."""
    return _merge(segmentation, dict.fromkeys(table, 0))[0] != _NOTHING


def label_map(segmentation: slicer.vtkMRMLSegmentationNode, values: Mapping[str, int]) -> Volume:
    """The segments as a label map, uint16, of ``values`` (segment ID to value), on the geometry of :func:`read_labels`.

    Of overlapping segments the first wins.
    """
    best, geometry, _cut = _merge(segmentation, {id_: rank for rank, id_ in enumerate(values)})
    numbers = np.zeros(_NOTHING + 1, np.uint16)
    numbers[: len(values)] = list(values.values())
    return Volume(numbers[best], geometry)


def _merge(segmentation, ranks: Mapping[str, int]) -> tuple[np.ndarray, Geometry, int]:
    """The lowest of the ``ranks`` of the segments at each voxel (k, j, i), uint8, :data:`_NOTHING` where there is none.

    With the geometry in RAS, and how many voxels of the segments lie outside of it.
    """
    local = reference_geometry(segmentation)
    geometry, transform = _placed(segmentation, local)
    # Where the segments are brought together: their own coordinates, or RAS if they have to be resampled anyway.
    target = local if transform is None else geometry
    best = np.full(target.shape, _NOTHING, np.uint8)
    cut = 0
    for layer, segments in _layers(segmentation, ranks):
        if transform is not None or _offset(image_geometry(layer), target) is None:
            layer = _resampled(layer, target, transform)
        array = image_array(layer)
        lookup = np.full(max(int(array.max()), *segments) + 1, _NOTHING, np.uint8)
        for value, id_ in segments.items():
            lookup[value] = ranks[id_]
        cut += _lay_over(best, lookup[array], _offset(image_geometry(layer), target), _NOTHING)
    return best, geometry, cut


def reference_geometry(segmentation: slicer.vtkMRMLSegmentationNode) -> Geometry:
    """Where the segmentation's voxels lie in its own coordinates (without its parent transform).

    Raises :class:`MedDPMError` if it has no reference geometry, as one that was made from surfaces.
    """
    text = segmentation.GetSegmentation().GetConversionParameter(_CONVERTER.GetReferenceImageGeometryParameterName())
    image = slicer.vtkOrientedImageData()
    if not text or not _CONVERTER.DeserializeImageGeometry(text, image, False) or min(image.GetDimensions()) < 1:
        text = _(
            'the segmentation "{name}" has no reference geometry: choose a source volume for it in the Segment Editor,'
            " or start from a template"
        )
        raise MedDPMError(text.format(name=segmentation.GetName()))
    return image_geometry(image)


def painted_geometry(segmentation: slicer.vtkMRMLSegmentationNode) -> Geometry:
    """Where the voxels of the reference geometry lie in RAS.

    Raises :class:`MedDPMError` if the parent transform bends or shears them: then they cannot be painted from here.
    """
    geometry, transform = _placed(segmentation, reference_geometry(segmentation))
    if transform is not None:
        text = _('the transform of "{name}" bends or shears it: harden it first (Transforms module)')
        raise MedDPMError(text.format(name=segmentation.GetName()))
    return geometry


def _check(table: Mapping[str, int], segmentation, scheme: LabelScheme) -> None:
    known = set(segmentation.GetSegmentation().GetSegmentIDs())
    for id_, value in table.items():
        if id_ not in known:
            text = _('"{name}" no longer has the segment "{segment}": choose the labels in the table again')
            raise MedDPMError(text.format(name=segmentation.GetName(), segment=id_))
        scheme.label_by_value(value)
    if not table:
        text = _('no segment of "{name}" stands for a label: choose the label of each segment in the table of labels')
        raise MedDPMError(text.format(name=segmentation.GetName()))


def _united(segmentation, table: Mapping[str, int], scheme: LabelScheme) -> tuple[str, ...]:
    """A note for each label that more than one segment stands for."""
    notes = []
    for label in scheme.labels:
        ids = [id_ for id_, value in table.items() if value == label.value]
        if len(ids) > 1:
            names = ", ".join(f'"{segmentation.GetSegmentation().GetSegment(id_).GetName()}"' for id_ in ids[:_LISTED])
            if len(ids) > _LISTED:
                names += _(" and {count} more").format(count=len(ids) - _LISTED)
            text = _("{label}: the segments {names} are combined")
            notes.append(text.format(label=label.name, names=names))
    return tuple(notes)


def _layers(segmentation, table: Iterable[str]):
    """The images that hold the table's segments, each with {value in the image: segment ID}; without empty ones.

    Segments that do not overlap share one image.
    """
    layers: dict[slicer.vtkOrientedImageData, dict[int, str]] = {}
    for id_ in table:
        segment = segmentation.GetSegmentation().GetSegment(id_)
        layer = segmentation.GetBinaryLabelmapInternalRepresentation(id_)
        value = segment.GetLabelValue()
        if layer is None and segment.GetRepresentation(segmentation.GetSegmentation().GetSourceRepresentationName()):
            # Painted as a surface: converted for this one segment, the segmentation stays as it is.
            layer, value = slicer.vtkOrientedImageData(), 1
            logic = slicer.modules.segmentations.logic()
            if not logic.GetSegmentBinaryLabelmapRepresentation(segmentation, id_, layer, False):
                text = _('the segment "{name}" cannot be converted into voxels: paint it again')
                raise MedDPMError(text.format(name=segment.GetName()))
        if layer is not None and not layer.IsEmpty() and layer.GetPointData().GetScalars() is not None:
            layers.setdefault(layer, {})[value] = id_
    return layers.items()


def _placed(segmentation, local: Geometry) -> tuple[Geometry, vtk.vtkAbstractTransform | None]:
    """The geometry of the result, and the transform that the segments have to be resampled through, if any."""
    matrix = world_matrix(segmentation)
    if matrix is not None:
        placed = Geometry(local.size, matrix @ local.ijk_to_ras)
        directions = placed.ijk_to_ras[:3, :3] / placed.spacing
        if np.abs(directions.T @ directions - np.eye(3)).max() < _EXACT:
            return placed, None
    transform = vtk.vtkGeneralTransform()
    segmentation.GetParentTransformNode().GetTransformToWorld(transform)
    return _around(local, transform), transform


def _around(local: Geometry, transform: vtk.vtkAbstractTransform) -> Geometry:
    """``local``'s lattice, as wide as ``local``'s box becomes in ``transform``."""
    steps = [np.linspace(-0.5, n - 0.5, _SAMPLES) for n in local.size]
    corners = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    moved = np.array([transform.TransformPoint(point) for point in local.to_ras(corners)])
    ijk = local.to_ijk(moved)
    first, last = np.floor(ijk.min(axis=0) + 0.5), np.ceil(ijk.max(axis=0) - 0.5)
    extent = [int(end) for pair in zip(first, last, strict=True) for end in pair]
    return extent_geometry(local.ijk_to_ras, extent)


def _resampled(layer, geometry: Geometry, transform: vtk.vtkAbstractTransform | None):
    result = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        layer, empty_image(geometry), result, False, False, transform
    )
    return result


def _offset(part: Geometry, whole: Geometry) -> np.ndarray | None:
    """Where the voxel (0, 0, 0) of ``part`` is in ``whole`` (i, j, k), if both have one lattice."""
    matrix = whole.ras_to_ijk @ part.ijk_to_ras
    rounded = np.round(matrix[:3, 3])
    drift = np.abs(matrix[:3, :3] - np.eye(3)) @ np.array(part.size) + np.abs(matrix[:3, 3] - rounded)
    return rounded.astype(int) if drift.max() < 100 * _EXACT else None


def _lay_over(best: np.ndarray, ranks: np.ndarray, offset: np.ndarray, background: int) -> int:
    """Puts ``ranks`` (k, j, i) into ``best`` at ``offset`` (i, j, k), where the lower wins; both hold ``background``
    where no label is. Returns how many labeled voxels lie outside ``best``.
    """
    start = offset[::-1]
    low = np.maximum(start, 0)
    high = np.maximum(np.minimum(start + ranks.shape, best.shape), low)
    inside = ranks[tuple(map(slice, low - start, high - start))]
    view = best[tuple(map(slice, low, high))]
    np.minimum(view, inside, out=view)
    if inside.shape == ranks.shape:
        return 0
    return int(np.count_nonzero(ranks != background) - np.count_nonzero(inside != background))
