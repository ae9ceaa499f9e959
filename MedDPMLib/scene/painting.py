"""How is painting automated? Templates, missing segments, the brain of an image, a tumor with one click."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.brain_area import brain_area
from MedDPMLib.masks.numberings import shows_brain
from MedDPMLib.masks.schemes import Label, LabelScheme
from MedDPMLib.masks.seg_nrrd import REGIONS, TYPES
from MedDPMLib.masks.templates import find_template, load_template
from MedDPMLib.masks.tumor import paint_tumor
from MedDPMLib.scene.background_work import Work, run_now
from MedDPMLib.scene.images import empty_image, oriented_image, volume_from_node
from MedDPMLib.scene.segmentation import (
    painted,
    painted_at,
    painted_geometry,
    read_labels,
    reference_geometry,
    tumor_center,
)
from MedDPMLib.scene.volumes import add_sheet

_BINARY_LABELMAP = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
_CONVERTER = slicer.vtkSegmentationConverter

#: Liters that a brain can have, children's and the largest.
_BRAIN = (0.6, 2.1)


def add_segmentation(labels: Volume, scheme: LabelScheme, name: str) -> slicer.vtkMRMLSegmentationNode:
    """A new segmentation with one segment for each label of ``scheme``, also for those that ``labels`` does not have.

    The segments carry the scheme's names, colors and terminology; those of a tumor come first, and share an image of
    their own: a stroke has Slicer make the surfaces of all segments of an image again. The reference geometry is that
    of ``labels`` (values of the scheme).
    """
    return run_now(adding_segmentation(labels, scheme, name))


def adding_segmentation(labels: Volume, scheme: LabelScheme, name: str) -> Work:
    """The work of :func:`add_segmentation`, step by step; the node comes into the scene when it is complete."""
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentationNode")
    node.UnRegister(None)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    core = node.GetSegmentation()
    core.SetSourceRepresentationName(_BINARY_LABELMAP)
    rest = [label for label in scheme.labels if label not in scheme.tumor]
    for group in (scheme.tumor, rest):
        voxels, first = yield partial(_cut_out, labels.array, [label.value for label in group])
        image = oriented_image(voxels, labels.geometry, first)
        for label in group:
            segment = _segment(label)
            segment.SetLabelValue(label.value)
            segment.AddRepresentation(_BINARY_LABELMAP, image)
            core.AddSegment(segment, label.name)
        yield
    core.SetConversionParameter(
        _CONVERTER.GetReferenceImageGeometryParameterName(),
        _CONVERTER.SerializeImageGeometry(empty_image(labels.geometry)),
    )
    node = slicer.mrmlScene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    return node


def _cut_out(array: np.ndarray, values: list[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """The ``values`` alone of ``array`` (k, j, i), cut to where they are, and the index (i, j, k) of the first voxel.

    Slicer copies and searches the whole image with each stroke.
    """
    lookup = np.zeros(256, np.uint8)
    lookup[values] = values
    kept = lookup[array.astype(np.uint8, copy=False)]
    box = []
    for axis in range(3):
        found = np.flatnonzero(kept.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(found[0], found[-1] + 1) if found.size else slice(0, 1))
    return np.ascontiguousarray(kept[tuple(box)]), tuple(int(part.start) for part in reversed(box))


def starting(name: str, scheme: LabelScheme | None = None) -> Work:
    """The work of starting from the template called ``name``, with the labels of ``scheme`` (None: its own): a
    segmentation with a blank volume to paint over, and a point (RAS, mm) in its tumor, None if it has none."""
    mask = yield partial(load_template, name, scheme)
    segmentation = yield from adding_segmentation(mask.volume, mask.scheme, find_template(name).title)
    yield
    add_sheet(segmentation)
    center = yield partial(tumor_center, mask.volume, mask.scheme)
    return segmentation, center


def add_segments(segmentation: slicer.vtkMRMLSegmentationNode, labels: Iterable[Label]) -> dict[str, int]:
    """Adds an empty segment for each label, ready to be painted; returns segment ID to label value."""
    added = {}
    for label in labels:
        id_ = segmentation.GetSegmentation().AddEmptySegment(
            label.name, label.name, [part / 255 for part in label.color]
        )
        _describe(segmentation.GetSegmentation().GetSegment(id_), label)
        added[id_] = label.value
    return added


def paint(
    segmentation: slicer.vtkMRMLSegmentationNode,
    segment_id: str,
    voxels: np.ndarray,
    *,
    first: Sequence[int] = (0, 0, 0),
    over: Iterable[str] = (),
) -> None:
    """Adds ``voxels`` (k, j, i; boolean) to a segment, the first of them at index ``first`` of the reference geometry.

    The segments ``over`` lose what is painted; all others keep it and overlap.
    """
    run_now(painting(segmentation, segment_id, voxels, first=first, over=over))


def painting(
    segmentation: slicer.vtkMRMLSegmentationNode,
    segment_id: str,
    voxels: np.ndarray,
    *,
    first: Sequence[int] = (0, 0, 0),
    over: Iterable[str] = (),
) -> Work:
    """The work of :func:`paint`, step by step."""
    lattice, over = reference_geometry(segmentation), list(over)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    image = oriented_image(voxels.astype(np.uint8), lattice, first)
    if not logic.SetBinaryLabelmapToSegment(
        image, segmentation, segment_id, logic.MODE_MERGE_MASK, image.GetExtent(), False, over
    ):
        text = _('the segment "{segment}" of "{segmentation}" cannot be painted: see the error log')
        raise MedDPMError(text.format(segment=segment_id, segmentation=segmentation.GetName()))
    # Segments in the same image were overwritten; those in other images are erased where they overlap.
    layer = segmentation.GetBinaryLabelmapInternalRepresentation(segment_id)
    rest = oriented_image(np.where(voxels, 0, 255).astype(np.uint8), lattice, first)
    others = [
        other
        for other in over
        if other != segment_id and segmentation.GetBinaryLabelmapInternalRepresentation(other) is not layer
    ]
    for other in painted_at(segmentation, others, voxels, lattice, first):
        yield
        logic.SetBinaryLabelmapToSegment(rest, segmentation, other, logic.MODE_MERGE_MIN, rest.GetExtent(), False, over)


def fill_brain(
    segmentation: slicer.vtkMRMLSegmentationNode,
    table: Mapping[str, int],
    scheme: LabelScheme,
    image: slicer.vtkMRMLScalarVolumeNode,
) -> str:
    """Paints the rest of the brain from a skull-stripped ``image`` where no label is; returns what was found.

    ``table`` is segment ID to label value and has to name a segment for that label. Raises
    :class:`MedDPMError` if it does not, or if the image shows no brain (:func:`MedDPMLib.masks.brain_area.brain_area`).
    """
    return run_now(filling_brain(segmentation, table, scheme, image))


def filling_brain(
    segmentation: slicer.vtkMRMLSegmentationNode,
    table: Mapping[str, int],
    scheme: LabelScheme,
    image: slicer.vtkMRMLScalarVolumeNode,
) -> Work:
    """The work of :func:`fill_brain`, step by step."""
    if scheme.rest is None:
        text = _('the scheme "{scheme}" has no label with the role "rest": choose another model')
        raise MedDPMError(text.format(scheme=scheme.name))
    segment_id = _segment_of(scheme.rest, table)
    volume = volume_from_node(image)
    volume = Volume(volume.array.copy(), volume.geometry)  # the image may be removed in the meantime
    area, note = yield partial(brain_area, volume, painted_geometry(segmentation))
    others = {id_: value for id_, value in table.items() if id_ != segment_id}
    paint(segmentation, segment_id, area & ~painted(segmentation, others, scheme))
    liters = np.count_nonzero(area) * painted_geometry(segmentation).voxel_volume / 1e6
    if shows_brain(scheme) and not _BRAIN[0] <= liters <= _BRAIN[1]:
        text = _("{note}. {liters:.2g} l is not the volume of a brain: undo it if the image is not skull-stripped")
        return text.format(note=note, liters=liters)
    return note


def stamp_tumor(
    segmentation: slicer.vtkMRMLSegmentationNode,
    table: Mapping[str, int],
    scheme: LabelScheme,
    center: Iterable[float],
    radius: float,
    *,
    seed: int = 0,
) -> None:
    """Paints a tumor around ``center`` (RAS, mm) into the segments, as :func:`MedDPMLib.masks.tumor.paint_tumor`.

    Every segment of ``table`` gives way, so that what lies under the tumor is erased, as with the brush. Raises
    :class:`MedDPMError` if a part of the tumor has no segment, or if there is no brain at ``center``.
    """
    run_now(stamping_tumor(segmentation, table, scheme, center, radius, seed=seed))


def stamping_tumor(
    segmentation: slicer.vtkMRMLSegmentationNode,
    table: Mapping[str, int],
    scheme: LabelScheme,
    center: Iterable[float],
    radius: float,
    *,
    seed: int = 0,
) -> Work:
    """The work of :func:`stamp_tumor`, step by step."""
    geometry = painted_geometry(segmentation)
    before = read_labels(segmentation, table, scheme).array
    yield
    center = np.array(tuple(center))
    first, parts = yield partial(_tumor_parts, before, geometry, scheme, center, radius, seed)
    places = [(_segment_of(label, table), voxels) for label, voxels in parts]
    for segment_id, voxels in places:
        others = [id_ for id_ in table if id_ != segment_id]
        yield from painting(segmentation, segment_id, voxels, first=first, over=others)
        yield


def _tumor_parts(
    before: np.ndarray, geometry: Geometry, scheme: LabelScheme, center: np.ndarray, radius: float, seed: int
) -> tuple[tuple[int, ...], list[tuple[Label, np.ndarray]]]:
    """What a tumor changes: the index (i, j, k) of a box, and in it the voxels (k, j, i) that each label gets."""
    after = paint_tumor(before, geometry, scheme, center, radius, seed=seed)
    changed = before != after
    if not changed.any():
        return (0, 0, 0), []
    box = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(changed))
    inside = [(label, changed[box] & (after[box] == label.value)) for label in scheme.labels]
    return tuple(int(part.start) for part in reversed(box)), [(label, where) for label, where in inside if where.any()]


def _segment(label: Label) -> slicer.vtkSegment:
    segment = slicer.vtkSegment()
    segment.SetName(label.name)
    segment.SetColor(*(part / 255 for part in label.color))
    _describe(segment, label)
    return segment


def _describe(segment: slicer.vtkSegment, label: Label) -> None:
    if label.category and label.type:
        codes = [part for code in (label.category, label.type) for part in (code.value, code.scheme, code.meaning)]
        modifier, region = ("", "", ""), ("", "", "")
        segment.SetTerminology(
            slicer.vtkSlicerTerminologiesModuleLogic.SerializeTerminologyEntry(
                TYPES, *codes, *modifier, REGIONS, *region, *modifier
            )
        )
    # Set explicitly: a change of the terminology must not rename or recolor it.
    segment.SetNameAutoGenerated(False)
    segment.SetColorAutoGenerated(False)


def _segment_of(label: Label, table: Mapping[str, int]) -> str:
    for id_, value in table.items():
        if value == label.value:
            return id_
    raise MedDPMError(_('no segment stands for "{label}": click "Add missing segments" first').format(label=label.name))
