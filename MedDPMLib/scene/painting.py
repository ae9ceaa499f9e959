"""How does the program paint? Templates, missing segments, the brain of an image, a tumour with one click."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import slicer

from MedDPMLib.brain_area import brain_area
from MedDPMLib.errors import MedDPMError
from MedDPMLib.geometry import Geometry
from MedDPMLib.labels import Label, LabelScheme
from MedDPMLib.scene.images import oriented_image, volume_from_node
from MedDPMLib.scene.segmentation import painted, painted_geometry, reference_geometry
from MedDPMLib.volume import Volume

_BINARY_LABELMAP = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
_CONVERTER = slicer.vtkSegmentationConverter

#: Slicer's own terminology and anatomic context: where its selector looks an entry up.
_TERMINOLOGY = "Segmentation category and type - 3D Slicer General Anatomy list"
_ANATOMY = "Anatomic codes - DICOM master list"

#: How far each part of a stamped tumour reaches, as a part of the whole; another label of a tumour fills it all.
_REACH = {"Oedema": 1.0, "Enhancing tumour": 0.6, "Necrosis": 0.4}


def add_segmentation(labels: Volume, scheme: LabelScheme, name: str) -> slicer.vtkMRMLSegmentationNode:
    """A new segmentation with one segment for each label of ``scheme``, also for those that ``labels`` does not have.

    The segments carry the scheme's names, colours and terminology and share one image; the reference geometry
    is that of ``labels`` (values of the scheme).
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", slicer.mrmlScene.GenerateUniqueName(name))
    core = node.GetSegmentation()
    core.SetSourceRepresentationName(_BINARY_LABELMAP)
    image = oriented_image(labels.array.astype(np.uint8, copy=False), labels.geometry)
    core.SetConversionParameter(
        _CONVERTER.GetReferenceImageGeometryParameterName(), _CONVERTER.SerializeImageGeometry(image)
    )
    for label in scheme.labels:
        segment = _segment(label)
        segment.SetLabelValue(label.value)
        segment.AddRepresentation(_BINARY_LABELMAP, image)
        core.AddSegment(segment, label.name)
    node.CreateDefaultDisplayNodes()
    return node


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
    lattice, over = reference_geometry(segmentation), list(over)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    image = oriented_image(voxels.astype(np.uint8), lattice, first)
    if not logic.SetBinaryLabelmapToSegment(
        image, segmentation, segment_id, logic.MODE_MERGE_MASK, image.GetExtent(), False, over
    ):
        raise MedDPMError(
            f'the segment "{segment_id}" of "{segmentation.GetName()}" cannot be painted: see the error log'
        )
    # Segments in the same image have given way already; those in others are erased.
    layer = segmentation.GetBinaryLabelmapInternalRepresentation(segment_id)
    rest = oriented_image(np.where(voxels, 0, 255).astype(np.uint8), lattice, first)
    for other in over:
        if other != segment_id and segmentation.GetBinaryLabelmapInternalRepresentation(other) is not layer:
            logic.SetBinaryLabelmapToSegment(
                rest, segmentation, other, logic.MODE_MERGE_MIN, rest.GetExtent(), False, over
            )


def fill_brain(
    segmentation: slicer.vtkMRMLSegmentationNode,
    table: Mapping[str, int],
    scheme: LabelScheme,
    image: slicer.vtkMRMLScalarVolumeNode,
) -> str:
    """Paints the rest of the brain from a skull-stripped ``image`` where no label is; returns what was found.

    ``table`` is segment ID to label value and has to name a segment for that label. Raises
    :class:`MedDPMError` if it does not, or if the image shows no brain (:func:`MedDPMLib.brain_area.brain_area`).
    """
    if scheme.rest is None:
        raise MedDPMError(f'the scheme "{scheme.name}" has no label for the rest of the brain: choose another model')
    segment_id = _segment_of(scheme.rest, table)
    area, note = brain_area(volume_from_node(image), painted_geometry(segmentation))
    others = {id_: value for id_, value in table.items() if id_ != segment_id}
    paint(segmentation, segment_id, area & ~painted(segmentation, others, scheme))
    return note


def stamp_tumour(
    segmentation: slicer.vtkMRMLSegmentationNode,
    table: Mapping[str, int],
    scheme: LabelScheme,
    center: Iterable[float],
    radius: float,
) -> None:
    """Paints a tumour of outer ``radius`` mm around ``center`` (RAS): necrosis in a shell that enhances, in oedema.

    Of a scheme with fewer tumour labels those it has. Every segment of ``table`` gives way, so that what is
    under the tumour is gone as with the brush. Raises :class:`MedDPMError` if a label has no segment, or if the
    tumour lies outside the reference geometry.
    """
    if not scheme.tumour:
        raise MedDPMError(f'the scheme "{scheme.name}" has no label for a tumour: choose another model')
    shells = [(_REACH.get(label.name, 1.0), _segment_of(label, table)) for label in scheme.tumour]
    distance, first = _distances(painted_geometry(segmentation), np.array(tuple(center)), radius)
    if distance.min(initial=np.inf) > radius:
        raise MedDPMError(
            "the tumour would lie outside the segmentation: move the crosshair into the brain (Shift and the mouse)"
        )
    with slicer.util.NodeModify(segmentation):
        for part, segment_id in sorted(shells, reverse=True):
            others = [id_ for id_ in table if id_ != segment_id]
            paint(segmentation, segment_id, distance <= part * radius, first=first, over=others)


def _distances(geometry: Geometry, center: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from ``center`` (RAS) of the voxels around it (k, j, i), and the index (i, j, k) of the first.

    The box holds all of ``geometry`` that is within ``radius``.
    """
    middle, reach = geometry.to_ijk(center), radius / geometry.spacing
    first = np.clip(np.floor(middle - reach), 0, geometry.size).astype(int)
    last = np.clip(np.ceil(middle + reach) + 1, first, geometry.size).astype(int)
    ijk = np.stack(np.meshgrid(*map(np.arange, first, last), indexing="ij"), axis=-1)
    return np.linalg.norm(geometry.to_ras(ijk) - center, axis=-1).transpose(2, 1, 0), first


def _segment(label: Label) -> slicer.vtkSegment:
    segment = slicer.vtkSegment()
    segment.SetName(label.name)
    segment.SetColor(*(part / 255 for part in label.color))
    _describe(segment, label)
    return segment


def _describe(segment: slicer.vtkSegment, label: Label) -> None:
    codes = [part for code in (label.category, label.type) for part in (code.value, code.scheme, code.meaning)]
    modifier, region = ("", "", ""), ("", "", "")
    segment.SetTerminology(
        slicer.vtkSlicerTerminologiesModuleLogic.SerializeTerminologyEntry(
            _TERMINOLOGY, *codes, *modifier, _ANATOMY, *region, *modifier
        )
    )
    # Given on purpose: a change of the terminology is not to rename or recolour it.
    segment.SetNameAutoGenerated(False)
    segment.SetColorAutoGenerated(False)


def _segment_of(label: Label, table: Mapping[str, int]) -> str:
    for id_, value in table.items():
        if value == label.value:
            return id_
    raise MedDPMError(f'no segment stands for "{label.name}": add the missing labels first')
